/* A load generator that is cheaper than any proxy it measures.
 *
 *     load IP PORT CONCURRENCY SECONDS stream|plain KEY MODEL [PROMPT_BYTES]
 *
 * Keeps CONCURRENCY requests running over as many connections; each is sent again as soon as it is
 * answered. A refused one (429, 503) comes back after its Retry-After, at least a second later, as
 * a client with manners does. Streams start evenly over the first two seconds; the first
 * `WARMUP` seconds do not count. One line of JSON comes out: rates per second, times in
 * milliseconds, and for streams the delay of every single chunk from the mock's write to our read.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <strings.h>

#include "net.h"

#define RAMP_S 2.0
#define WARMUP_S 3.0
#define MARK "\" T"
#define MARK_LENGTH 23 /* the mark and 20 digits */

struct call {
    int fd;
    int status;     /* 0 while the head is not whole */
    int connecting; /* the request goes out when the connection stands */
    long body_left; /* of a plain answer with a length; -1: chunked */
    uint64_t sent, first, again_at;
    struct buffer in;
};

struct samples { /* microseconds */
    uint32_t *values;
    size_t count, room;
};

static struct samples chunk_delay, first_byte, total, refusal;
static long errors, refused, answered;
static struct sockaddr_in peer;
static int ep, streaming;
static char *request;
static size_t request_length;
static uint64_t counts_from;

static void sample(struct samples *s, uint64_t ns) {
    if (s->count == s->room) {
        s->room = s->room ? s->room * 2 : 65536;
        s->values = realloc(s->values, s->room * sizeof *s->values);
        if (!s->values) die("realloc");
    }
    uint64_t us = ns / NS_PER_US;
    s->values[s->count++] = us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Milliseconds; -1 without samples. The samples must be sorted. */
static double percentile(const struct samples *s, double p) {
    return s->count ? s->values[(size_t)((double)(s->count - 1) * p)] / 1000.0 : -1;
}

/* --- one request ------------------------------------------------------------------------------ */

static void send_request(struct call *c) {
    c->status = 0;
    c->first = c->again_at = 0;
    c->in.length = 0;
    c->sent = now_ns();
    if (write(c->fd, request, request_length) != (ssize_t)request_length) errors++;
}

/* Never waits: a proxy that accepts late must not stop the clock of all other calls. */
static void connect_again(struct call *c) {
    if (c->fd > 0) close(c->fd);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    c->connecting = 1;
    no_delay(c->fd);
    if (connect(c->fd, (struct sockaddr *)&peer, sizeof peer) && errno != EINPROGRESS) {
        errors++;
        close(c->fd);
        c->fd = 0;
        c->again_at = now_ns() + NS_PER_S;
        return;
    }
    struct epoll_event e;
    e.events = EPOLLIN | EPOLLOUT;
    e.data.ptr = c;
    if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
}

static void begin(struct call *c) {
    if (c->fd <= 0)
        connect_again(c);
    else if (!c->connecting)
        send_request(c);
}

static void connected(struct call *c) {
    struct epoll_event e;
    e.events = EPOLLIN;
    e.data.ptr = c;
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
    c->connecting = 0;
    if (!c->again_at) send_request(c); /* else it waits out its Retry-After */
}

static const char *header(const char *head, const char *name) {
    const char *at = strcasestr(head, name);
    return at ? at + strlen(name) : NULL;
}

/* The head, once it is whole: status, and how the body ends. */
static int read_head(struct call *c, uint64_t now) {
    char *end = strstr(c->in.bytes, "\r\n\r\n");
    if (!end) return 0;
    *end = 0;
    c->status = atoi(c->in.bytes + 9);
    const char *length = header(c->in.bytes, "\r\ncontent-length:");
    c->body_left = length ? atol(length) : -1;
    if (c->status != 200) {
        const char *after = header(c->in.bytes, "\r\nretry-after:");
        long seconds = after ? atol(after) : 1;
        c->again_at = now + (uint64_t)(seconds < 1 ? 1 : seconds) * NS_PER_S;
    }
    drop_front(&c->in, (size_t)(end - c->in.bytes) + 4);
    return 1;
}

/* Takes the marks out of what came, keeps what may be the beginning of one. */
static void read_marks(struct call *c, uint64_t now) {
    char *at = c->in.bytes, *end = c->in.bytes + c->in.length, *mark;
    while ((mark = memmem(at, (size_t)(end - at), MARK, 3)) && end - mark >= MARK_LENGTH) {
        uint64_t written = strtoull(mark + 3, NULL, 10);
        if (now >= counts_from) sample(&chunk_delay, now > written ? now - written : 0);
        at = mark + MARK_LENGTH;
    }
    size_t keep = (size_t)(end - at) < MARK_LENGTH * 2 ? (size_t)(end - at) : MARK_LENGTH * 2;
    drop_front(&c->in, c->in.length - keep);
}

static int ended(struct call *c) {
    if (c->body_left >= 0) return (long)c->in.length >= c->body_left;
    return c->in.length >= 5 && !memcmp(c->in.bytes + c->in.length - 5, "0\r\n\r\n", 5);
}

static void finished(struct call *c, uint64_t now) {
    int counts = c->sent >= counts_from;
    if (c->status == 200) {
        if (counts) {
            answered++;
            sample(&total, now - c->sent);
            sample(&first_byte, c->first - c->sent);
        }
        send_request(c);
    } else if (c->status == 429 || c->status == 503) {
        if (counts) {
            refused++;
            sample(&refusal, now - c->sent);
        }
    } else {
        if (counts) errors++;
        c->again_at = now + NS_PER_S;
    }
}

static void readable(struct call *c) {
    int came = read_some(c->fd, &c->in);
    uint64_t now = now_ns();
    if (came == 0) return;
    if (came < 0) {
        int waiting = c->again_at != 0; /* a refusal that closed its connection */
        if (!waiting && now >= counts_from) errors++;
        connect_again(c);
        return;
    }
    if (c->again_at) return;
    if (!c->first) c->first = now;
    if (!c->status && !read_head(c, now)) return;
    int over = ended(c);
    if (streaming && c->status == 200) read_marks(c, now);
    if (over) finished(c, now);
}

/* --- all of them ------------------------------------------------------------------------------ */

static void make_request(const char *key, const char *model, int prompt_bytes) {
    char *prompt = malloc((size_t)prompt_bytes + 1), *body = malloc((size_t)prompt_bytes + 512);
    memset(prompt, 'x', (size_t)prompt_bytes);
    prompt[prompt_bytes] = 0;
    int length = sprintf(body,
                         "{\"model\":\"%s\",\"stream\":%s,\"messages\":"
                         "[{\"role\":\"user\",\"content\":\"%s\"}]}",
                         model, streaming ? "true" : "false", prompt);
    request = malloc((size_t)length + 512);
    request_length = (size_t)sprintf(request,
                                     "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\n"
                                     "Content-Type: application/json\r\n"
                                     "Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
                                     key, length, body);
    free(prompt);
    free(body);
}

static void report(int concurrency, double seconds) {
    struct samples *all[] = {&chunk_delay, &first_byte, &total, &refusal};
    for (int i = 0; i < 4; i++)
        if (all[i]->count) qsort(all[i]->values, all[i]->count, sizeof(uint32_t), by_value);
    printf("{\"concurrency\":%d,\"requests_per_s\":%.1f,\"chunks_per_s\":%.1f,"
           "\"total_p50\":%.3f,\"total_p99\":%.3f,\"first_p50\":%.3f,\"first_p99\":%.3f,"
           "\"chunk_p50\":%.3f,\"chunk_p90\":%.3f,\"chunk_p99\":%.3f,\"chunk_max\":%.3f,"
           "\"refused\":%ld,\"refusal_p50\":%.3f,\"refusal_p99\":%.3f,\"errors\":%ld}\n",
           concurrency, (double)answered / seconds, (double)chunk_delay.count / seconds,
           percentile(&total, .5), percentile(&total, .99), percentile(&first_byte, .5),
           percentile(&first_byte, .99), percentile(&chunk_delay, .5),
           percentile(&chunk_delay, .9), percentile(&chunk_delay, .99),
           percentile(&chunk_delay, 1), refused, percentile(&refusal, .5),
           percentile(&refusal, .99), errors);
}

int main(int count, char **given) {
    if (count < 8) {
        fputs("usage: load IP PORT CONCURRENCY SECONDS stream|plain KEY MODEL [PROMPT_BYTES]\n",
              stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int concurrency = atoi(given[3]);
    double seconds = atof(given[4]);
    streaming = !strcmp(given[5], "stream");
    make_request(given[6], given[7], count > 8 ? atoi(given[8]) : 200);
    peer = address(given[1], atoi(given[2]));
    ep = epoll_create1(0);
    struct call *calls = calloc((size_t)concurrency, sizeof *calls);
    uint64_t start = now_ns();
    counts_from = start + (uint64_t)(WARMUP_S * (double)NS_PER_S);
    uint64_t end = counts_from + (uint64_t)(seconds * (double)NS_PER_S);
    uint64_t looked = start;
    int begun = 0;
    struct epoll_event events[512];
    for (uint64_t now = start; now < end; now = now_ns()) {
        double passed = (double)(now - start) / (double)NS_PER_S;
        int wanted = passed >= RAMP_S ? concurrency : (int)(passed / RAMP_S * concurrency) + 1;
        for (; begun < wanted && begun < concurrency; begun++) begin(&calls[begun]);
        if (now - looked > NS_PER_S / 100) { /* who was refused comes back in his time */
            looked = now;
            for (int i = 0; i < begun; i++)
                if (calls[i].again_at && calls[i].again_at <= now) {
                    calls[i].again_at = 0;
                    begin(&calls[i]);
                }
        }
        int ready = epoll_wait(ep, events, 512, 2);
        for (int i = 0; i < ready; i++) {
            struct call *c = events[i].data.ptr;
            if (c->connecting && !(events[i].events & (EPOLLERR | EPOLLHUP)))
                connected(c);
            else
                readable(c);
        }
    }
    report(concurrency, seconds);
    return 0;
}
