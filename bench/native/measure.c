/*
 * Runs one command and prints what it cost as JSON. A small C program, because what a process is
 * charged for as its peak memory begins with the size of whoever forked it.
 *
 *   measure OUTPUT COMMAND [ARGUMENT ...]
 *
 * The command's stdout and stderr go to the file OUTPUT.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  int output = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  double began = now();
  pid_t child = fork();
  if (child == 0) {
    dup2(output, 1);
    dup2(output, 2);
    execvp(argv[2], argv + 2);
    perror(argv[2]);
    _exit(127);
  }
  int status;
  struct rusage usage;
  if (child < 0 || wait4(child, &status, 0, &usage) < 0) {
    perror("measure");
    return 1;
  }
  double wall = now() - began;
  printf("{\"seconds\":%.6f,\"user\":%ld.%06ld,\"system\":%ld.%06ld,\"peakKiB\":%ld,\"exit\":%d}\n", wall,
         usage.ru_utime.tv_sec, usage.ru_utime.tv_usec, usage.ru_stime.tv_sec, usage.ru_stime.tv_usec,
         usage.ru_maxrss, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
  return 0;
}
