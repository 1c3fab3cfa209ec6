/*
 * The least a server can do, as a limit for all others: one thread, epoll, reads a request's head for
 * its Content-Length, reads that many bytes and answers 201. With a directory it writes them to a new
 * file there; without, it drops them. Prints the port it listens on.
 *
 *   sink [DIRECTORY]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER (1 << 20)
#define HEAD_MAX 8192

static const char ANSWER[] = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";
static char buffer[BUFFER];
static const char *directory;
static unsigned files;

struct connection {
  int fd, file;
  size_t have;
  long long left; /* of the body; -1 while the head is being read */
  char head[HEAD_MAX + 1];
};

static void die(const char *what) {
  fprintf(stderr, "sink: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void store(struct connection *c, const char *bytes, size_t length) {
  while (directory && length > 0) {
    ssize_t n = write(c->file, bytes, length);
    if (n < 0) die("write");
    bytes += n;
    length -= n;
  }
}

static void begin_body(struct connection *c) {
  char *length = strcasestr(c->head, "\r\ncontent-length:");
  c->left = length ? atoll(length + 17) : 0;
  if (!directory) return;
  char path[4096];
  snprintf(path, sizeof path, "%s/%u", directory, files++);
  c->file = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
  if (c->file < 0) die(path);
}

static void take(struct connection *c, const char *bytes, size_t length) {
  if (c->left > 0 && length > 0) {
    store(c, bytes, length);
    c->left -= length;
  }
  if (c->left != 0) return;
  if (directory) close(c->file);
  c->left = -1;
  c->have = 0;
  if (send(c->fd, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL) < 0) return;
}

/* Up to a megabyte per turn, so that no connection starves the others. 0: it has closed. */
static int serve(struct connection *c) {
  if (c->left >= 0) {
    ssize_t n = recv(c->fd, buffer, c->left < BUFFER ? c->left : BUFFER, 0);
    if (n <= 0) return n < 0 && errno == EAGAIN;
    take(c, buffer, n);
    return 1;
  }
  ssize_t n = recv(c->fd, buffer, BUFFER, 0);
  if (n <= 0) return n < 0 && errno == EAGAIN;
  size_t before = c->have, fits = HEAD_MAX - before < (size_t)n ? HEAD_MAX - before : (size_t)n;
  memcpy(c->head + before, buffer, fits);
  c->have += fits;
  c->head[c->have] = 0;
  char *end = strstr(c->head, "\r\n\r\n");
  if (!end) return c->have < HEAD_MAX;
  end[2] = 0;
  begin_body(c);
  /* What of this read is body already. */
  size_t used = end + 4 - c->head - before;
  take(c, buffer + used, n - used);
  return 1;
}

int main(int argc, char **argv) {
  if (argc > 1) directory = argv[1];
  int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, 1024) < 0) die("listen");
  getsockname(listener, (struct sockaddr *)&address, &length);
  printf("http://127.0.0.1:%d/\n", ntohs(address.sin_port));
  fflush(stdout);
  struct epoll_event event = {.events = EPOLLIN}, events[64];
  epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
  for (;;) {
    int n = epoll_wait(epoll, events, 64, -1);
    for (int i = 0; i < n; i++) {
      struct connection *c = events[i].data.ptr;
      if (!c) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (fd < 0) continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c = calloc(1, sizeof *c);
        c->fd = fd;
        c->left = -1;
        event = (struct epoll_event){.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
      } else if (!serve(c)) {
        close(c->fd);
        free(c);
      }
    }
  }
}
