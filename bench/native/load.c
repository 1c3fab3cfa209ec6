/*
 * The load generator: one thread, epoll, keep-alive connections that are never idle.
 *
 *   load PORT CONNECTIONS REQUESTS SECONDS PAYLOAD SIZE HEAD TAIL FIRST [POLL_HEAD POLL_MS each|one]
 *
 * Every request is HEAD, then the first SIZE bytes of PAYLOAD, then TAIL (three files; TAIL may be
 * empty). "#########" in HEAD and POLL_HEAD becomes the number of the request, counted from FIRST,
 * so that a length computed once stays right. It ends after REQUESTS requests, or starts none after
 * SECONDS (0: no such limit), and prints JSON. Large payloads go out by sendfile: not copied here.
 *
 * With POLL_HEAD a second process asks for the progress of the uploads in flight, over a connection of
 * its own: every POLL_MS for one of them in turn, or for each.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HOLE "#########"
#define HOLE_DIGITS 9
#define HOLES_MAX 8
/* Up to here a request goes out in one sendmsg; beyond, the payload takes sendfile. */
#define COPIED_MAX (256 * 1024)
#define ANSWER_MAX 65536

static void die(const char *what) {
  fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

/* A text with numbered holes. */
struct template {
  char *text;
  size_t length;
  size_t holes[HOLES_MAX];
  int count;
};

static struct template read_template(const char *path) {
  struct template t = {0};
  FILE *file = fopen(path, "r");
  struct stat st;
  if (!file || fstat(fileno(file), &st) < 0) die(path);
  t.length = st.st_size;
  t.text = calloc(1, t.length + 1);
  if (fread(t.text, 1, t.length, file) != t.length) die(path);
  fclose(file);
  for (char *at = t.text; (at = strstr(at, HOLE)) && t.count < HOLES_MAX; at += HOLE_DIGITS)
    t.holes[t.count++] = at - t.text;
  return t;
}

static void fill(const struct template *t, char *into, unsigned number) {
  char digits[HOLE_DIGITS + 1];
  snprintf(digits, sizeof digits, "%09u", number % 1000000000u);
  memcpy(into, t->text, t->length);
  for (int i = 0; i < t->count; i++) memcpy(into + t->holes[i], digits, HOLE_DIGITS);
}

/* An HTTP answer as it comes in. */
struct answer {
  char *text;
  size_t have;
  size_t head; /* 0 until the head is complete */
  long length; /* of the body; -1: chunked, -2: until the connection closes */
  int status;
  int closes;
};

/* 1 when the answer is complete, 0 when more must come, -1 when it is none. */
static int parse_answer(struct answer *a, int ended) {
  while (!a->head) {
    a->text[a->have] = 0;
    char *end = strstr(a->text, "\r\n\r\n");
    if (!end) return ended || a->have == ANSWER_MAX ? -1 : 0;
    if (sscanf(a->text, "HTTP/1.%*d %d", &a->status) != 1) return -1;
    size_t head = end + 4 - a->text;
    if (a->status < 200) { /* an interim answer */
      memmove(a->text, a->text + head, a->have -= head);
      continue;
    }
    a->head = head;
    a->closes = 0;
    a->length = a->status == 204 ? 0 : -2;
    for (char *line = strstr(a->text, "\r\n"); line && line < end; line = strstr(line + 2, "\r\n")) {
      if (!strncasecmp(line + 2, "content-length:", 15)) a->length = atol(line + 17);
      if (!strncasecmp(line + 2, "transfer-encoding: chunked", 26)) a->length = -1;
      if (!strncasecmp(line + 2, "connection: close", 17)) a->closes = 1;
    }
  }
  if (a->length >= 0) return a->have >= a->head + (size_t)a->length ? 1 : a->have == ANSWER_MAX ? -1 : 0;
  if (a->length == -1) return a->have >= a->head + 5 && !memcmp(a->text + a->have - 5, "0\r\n\r\n", 5);
  return ended;
}

struct connection {
  int fd;
  int index;
  int active;
  char *head;
  size_t sent; /* of head, payload and tail together */
  double began;
  struct answer answer;
};

/* What the poller shares with the generator: the number in flight per connection, and its counts. */
struct shared {
  _Atomic int stop;
  _Atomic unsigned polls, uploading, failed, slowest_ms;
  _Atomic unsigned current[];
};

static struct sockaddr_in address = {.sin_family = AF_INET};
static struct template head, tail, poll_head;
static const char *payload;
static int payload_fd;
static size_t size, total;
static int epoll;
static unsigned first, requests, started, completed, failed;
static double deadline;
static float *latencies;
static struct shared *shared;
static char failure[1024];

static void open_connection(struct connection *c) {
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) die("socket");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) die("connect");
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) < 0) die("epoll_ctl");
}

static void start_request(struct connection *c) {
  c->active = started < requests && (deadline == 0 || now() < deadline);
  atomic_store_explicit(&shared->current[c->index], c->active ? first + started : 0, memory_order_relaxed);
  if (!c->active) return;
  fill(&head, c->head, first + started++);
  c->sent = 0;
  c->answer.have = c->answer.head = 0;
  c->began = now();
}

static void end_request(struct connection *c, int good) {
  if (good)
    latencies[completed++] = (now() - c->began) * 1e3;
  else if (failed++ == 0)
    snprintf(failure, sizeof failure, "%.*s", (int)sizeof failure - 1, c->answer.have ? c->answer.text : "no answer");
  if (!good || c->answer.closes) {
    close(c->fd);
    start_request(c);
    if (c->active) open_connection(c);
  } else {
    start_request(c);
  }
}

/* Sends until the socket is full or the request is out. */
static void send_some(struct connection *c) {
  while (c->active && c->sent < total) {
    ssize_t n;
    if (size > COPIED_MAX && c->sent >= head.length && c->sent < head.length + size) {
      off_t offset = c->sent - head.length;
      size_t left = size - offset;
      n = sendfile(c->fd, payload_fd, &offset, left < 4 << 20 ? left : 4 << 20);
    } else {
      struct iovec parts[3];
      size_t ends[3] = {head.length, head.length + size, total}, at = 0;
      const char *texts[3] = {c->head, payload, tail.text};
      int count = 0, more = 0;
      for (int i = 0; i < 3; at = ends[i++]) {
        if (c->sent >= ends[i]) continue;
        if (i == 1 && size > COPIED_MAX) {
          more = MSG_MORE;
          break;
        }
        size_t from = c->sent > at ? c->sent - at : 0;
        parts[count++] = (struct iovec){(char *)texts[i] + from, ends[i] - at - from};
      }
      struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
      n = sendmsg(c->fd, &message, MSG_NOSIGNAL | more);
    }
    if (n < 0) {
      if (errno == EINTR) continue;
      return; /* EAGAIN: epoll tells. Anything else: reading tells. */
    }
    c->sent += n;
  }
}

static void receive_some(struct connection *c) {
  while (c->active) {
    struct answer *a = &c->answer;
    ssize_t n = recv(c->fd, a->text + a->have, ANSWER_MAX - a->have, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == ENOTCONN)) return;
    if (n > 0) a->have += n;
    int done = parse_answer(a, n <= 0);
    if (done == 0 && n > 0) continue;
    int good = done == 1 && a->status / 100 == 2 && c->sent == total;
    if (n <= 0) a->closes = 1;
    int reopened = !good || a->closes;
    end_request(c, good);
    if (!reopened) send_some(c);
    else return; /* the new connection has its own first event */
  }
}

/* The poller's process. */
static void poll_progress(int connections, int interval_ms, int each) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  char *request = calloc(1, poll_head.length), text[ANSWER_MAX + 1];
  int fd = -1, turn = 0;
  double next = now();
  while (!shared->stop) {
    for (int i = 0; i < (each ? connections : 1) && !shared->stop; i++) {
      unsigned number = 0;
      for (int tries = 0; number == 0 && tries < (each ? 1 : connections); tries++)
        number = shared->current[turn++ % connections];
      if (number == 0) continue;
      if (fd < 0) {
        struct timeval patience = {.tv_sec = 60};
        fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) die("poller: connect");
      }
      fill(&poll_head, request, number);
      struct answer a = {.text = text};
      double asked = now();
      int done = send(fd, request, poll_head.length, MSG_NOSIGNAL) == (ssize_t)poll_head.length ? 0 : -1;
      while (done == 0) {
        ssize_t n = recv(fd, text + a.have, ANSWER_MAX - a.have, 0);
        if (n <= 0) done = -1;
        else {
          a.have += n;
          done = parse_answer(&a, 0);
        }
      }
      shared->polls++;
      unsigned ms = (now() - asked) * 1e3;
      if (ms > shared->slowest_ms) shared->slowest_ms = ms;
      text[a.have] = 0;
      if (done == 1 && a.status == 200 && strstr(text, "\"uploading\"")) shared->uploading++;
      if (done != 1 || a.status != 200) shared->failed++;
      if (done != 1 || a.closes) {
        close(fd);
        fd = -1;
      }
    }
    next += interval_ms / 1e3;
    double pause = next - now();
    if (pause <= 0) next = now();
    else usleep(pause * 1e6);
  }
  _exit(0);
}

int main(int argc, char **argv) {
  if (argc != 10 && argc != 13) {
    fprintf(stderr, "usage: load PORT CONNECTIONS REQUESTS SECONDS PAYLOAD SIZE HEAD TAIL FIRST"
                    " [POLL_HEAD POLL_MS each|one]\n");
    return 2;
  }
  address.sin_port = htons(atoi(argv[1]));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int connections = atoi(argv[2]);
  requests = atoi(argv[3]);
  double seconds = atof(argv[4]);
  payload_fd = open(argv[5], O_RDONLY);
  size = strtoull(argv[6], NULL, 10);
  head = read_template(argv[7]);
  tail = read_template(argv[8]);
  first = atoi(argv[9]);
  if (payload_fd < 0) die(argv[5]);
  payload = mmap(NULL, size, PROT_READ, MAP_SHARED, payload_fd, 0);
  if (payload == MAP_FAILED) die("mmap");
  total = head.length + size + tail.length;
  latencies = malloc(requests * sizeof *latencies);
  shared = mmap(NULL, sizeof *shared + connections * sizeof(unsigned), PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  signal(SIGPIPE, SIG_IGN);
  epoll = epoll_create1(0);

  pid_t poller = 0;
  if (argc == 13) {
    poll_head = read_template(argv[10]);
    if ((poller = fork()) == 0) poll_progress(connections, atoi(argv[11]), !strcmp(argv[12], "each"));
  }

  struct connection *all = calloc(connections, sizeof *all);
  double began = now();
  if (seconds > 0) deadline = began + seconds;
  for (int i = 0; i < connections; i++) {
    struct connection *c = &all[i];
    c->index = i;
    c->head = malloc(head.length);
    c->answer.text = malloc(ANSWER_MAX + 1);
    start_request(c);
    if (c->active) open_connection(c);
  }
  struct epoll_event events[256];
  while (completed + failed < started) {
    int n = epoll_wait(epoll, events, 256, 60000);
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) {
      fprintf(stderr, "load: the server has been silent for a minute\n");
      return 1;
    }
    for (int i = 0; i < n; i++) {
      struct connection *c = events[i].data.ptr;
      if (events[i].events & EPOLLOUT) send_some(c);
      if (events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) receive_some(c);
    }
  }
  double elapsed = now() - began;
  if (poller) {
    shared->stop = 1;
    kill(poller, SIGKILL);
    waitpid(poller, NULL, 0);
  }

  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
  for (char *at = failure; *at; at++)
    if (*at < ' ' || *at == '"' || *at == '\\' || *at > '~') *at = ' ';
  printf("{\"seconds\":%.6f,\"completed\":%u,\"failed\":%u,\"failure\":\"%s\",\"cpu\":%.6f,", elapsed, completed, failed,
         failure, cpu);
  printf("\"polls\":%u,\"uploading\":%u,\"pollsFailed\":%u,\"slowestPollMs\":%u,", shared->polls, shared->uploading,
         shared->failed, shared->slowest_ms);
  printf("\"latencies\":[");
  for (unsigned i = 0; i < completed; i++) printf("%s%.3f", i ? "," : "", latencies[i]);
  printf("]}\n");
  return 0;
}
