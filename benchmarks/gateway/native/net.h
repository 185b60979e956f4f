/* What mock and load share: a clock, sockets, and a growing byte buffer. */
#ifndef BENCH_NET_H
#define BENCH_NET_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ULL
#define NS_PER_US 1000ULL

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline struct sockaddr_in address(const char *ip, int port) {
    struct sockaddr_in a;
    memset(&a, 0, sizeof a);
    a.sin_family = AF_INET;
    a.sin_port = htons((uint16_t)port);
    if (inet_pton(AF_INET, ip, &a.sin_addr) != 1) die(ip);
    return a;
}

static inline void no_delay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static inline void watch(int ep, int fd, void *who) {
    struct epoll_event e;
    e.events = EPOLLIN;
    e.data.ptr = who;
    if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
}

/* A byte buffer that grows; always NUL-terminated, so that string functions may look at it. */
struct buffer {
    char *bytes;
    size_t length, room;
};

static inline void reserve(struct buffer *b, size_t more) {
    if (b->length + more + 1 <= b->room) return;
    b->room = (b->length + more + 1) * 2;
    b->bytes = realloc(b->bytes, b->room);
    if (!b->bytes) die("realloc");
}

static inline void drop_front(struct buffer *b, size_t n) {
    b->length -= n;
    memmove(b->bytes, b->bytes + n, b->length);
    b->bytes[b->length] = 0;
}

/* Reads what is there: 1 = something came, 0 = nothing now, -1 = the peer has closed. */
static inline int read_some(int fd, struct buffer *b) {
    reserve(b, 16384);
    ssize_t n = read(fd, b->bytes + b->length, b->room - b->length - 1);
    if (n > 0) {
        b->length += (size_t)n;
        b->bytes[b->length] = 0;
        return 1;
    }
    return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

#endif
