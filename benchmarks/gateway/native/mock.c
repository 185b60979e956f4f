/* A mock of vLLM's HTTP API, cheap enough that a proxy before it is what is measured.
 *
 *     mock IP PORT CHUNKS GAP_US
 *
 * POST with "stream":true   CHUNKS chunks, GAP_US apart (0: all at once), then a finish and [DONE].
 * any other POST            one JSON answer, at once.
 * GET                       a model list that also passes as a health answer.
 *
 * Each streamed chunk carries this machine's monotonic clock as its text (" T" and 20 digits), so
 * that the load generator measures the delay of every single token. Token ids come when the request
 * asks for them ("return_token_ids":true), as vLLM does it: the prompt's in the first chunk, one in
 * each further chunk. So does a chunk with the usage ("include_usage":true), before [DONE].
 */
#define _GNU_SOURCE
#include <signal.h>
#include <strings.h>
#include <sys/timerfd.h>

#include "net.h"

#define MAX_FDS 65536
#define PROMPT_IDS 64
#define ENVELOPE                                                                    \
    "{\"id\":\"chatcmpl-1234567890abcdef1234567890abcdef\","                        \
    "\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"demo\"," \
    "\"choices\":[{\"index\":0,\"delta\":{"

struct connection {
    int fd;
    int chunks_left; /* 0: no answer is being streamed */
    int token_ids;
    int usage;
    unsigned generation; /* tells a timer of an earlier connection on this descriptor */
    struct buffer in;
};

struct timer {
    uint64_t at;
    int fd;
    unsigned generation;
};

static struct connection *connections[MAX_FDS];
static struct timer heap[MAX_FDS * 2];
static int timers;
static int chunks_per_answer;
static uint64_t gap_ns;

/* --- timers: a binary heap -------------------------------------------------------------------- */

static void add_timer(struct timer t) {
    int at = timers++;
    if (timers > (int)(sizeof heap / sizeof *heap)) {
        fputs("too many timers\n", stderr);
        exit(1);
    }
    while (at && heap[(at - 1) / 2].at > t.at) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = t;
}

static struct timer first_timer(void) {
    struct timer first = heap[0], last = heap[--timers];
    int at = 0;
    for (;;) {
        int child = 2 * at + 1;
        if (child >= timers) break;
        if (child + 1 < timers && heap[child + 1].at < heap[child].at) child++;
        if (heap[child].at >= last.at) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return first;
}

/* --- answers ---------------------------------------------------------------------------------- */

static void send_all(int fd, const char *bytes, size_t length) {
    while (length) {
        ssize_t n = write(fd, bytes, length);
        if (n < 0) {
            if (errno != EAGAIN) return; /* gone: the read side will notice */
            usleep(50);
            continue;
        }
        bytes += n;
        length -= (size_t)n;
    }
}

static void send_event(struct connection *c, const char *event, int length) {
    char out[2048];
    int n = snprintf(out, sizeof out, "%x\r\n%.*s\r\n", (unsigned)length, length, event);
    send_all(c->fd, out, (size_t)n);
}

static void send_role(struct connection *c) {
    char event[1536];
    int n = snprintf(event, sizeof event,
                     "data: " ENVELOPE "\"role\":\"assistant\",\"content\":\"\"},"
                     "\"logprobs\":null,\"finish_reason\":null}]");
    if (c->token_ids) {
        n += snprintf(event + n, sizeof event - (size_t)n, ",\"prompt_token_ids\":[1");
        for (int i = 1; i < PROMPT_IDS; i++)
            n += snprintf(event + n, sizeof event - (size_t)n, ",%d", 1000 + i);
        n += snprintf(event + n, sizeof event - (size_t)n, "]");
    }
    n += snprintf(event + n, sizeof event - (size_t)n, "}\n\n");
    send_event(c, event, n);
}

static void send_chunk(struct connection *c) {
    char event[512];
    int n = snprintf(event, sizeof event,
                     "data: " ENVELOPE "\"content\":\" T%020llu\"},\"logprobs\":null,"
                     "\"finish_reason\":null,\"token_ids\":%s}]}\n\n",
                     (unsigned long long)now_ns(), c->token_ids ? "[15043]" : "null");
    send_event(c, event, n);
    c->chunks_left--;
}

static void send_usage(struct connection *c) {
    char event[512];
    int n = snprintf(event, sizeof event,
                     "data: {\"id\":\"chatcmpl-1234567890abcdef1234567890abcdef\","
                     "\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
                     "\"model\":\"demo\",\"choices\":[],\"usage\":{\"prompt_tokens\":%d,"
                     "\"total_tokens\":%d,\"completion_tokens\":%d}}\n\n",
                     PROMPT_IDS, PROMPT_IDS + chunks_per_answer, chunks_per_answer);
    send_event(c, event, n);
}

static void send_end(struct connection *c) {
    static const char finish[] =
        "data: " ENVELOPE "\"content\":\"\"},\"logprobs\":null,\"finish_reason\":\"stop\","
        "\"stop_reason\":null,\"token_ids\":null}]}\n\n";
    static const char done[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    send_event(c, finish, (int)sizeof finish - 1);
    if (c->usage) send_usage(c);
    send_all(c->fd, done, sizeof done - 1);
}

static void send_json(struct connection *c, const char *body) {
    char out[1024];
    int n = snprintf(out, sizeof out,
                     "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n\r\n%s",
                     strlen(body), body);
    send_all(c->fd, out, (size_t)n);
}

static void begin_stream(struct connection *c) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    send_all(c->fd, head, sizeof head - 1);
    send_role(c);
    c->chunks_left = chunks_per_answer;
    if (gap_ns) {
        add_timer((struct timer){now_ns() + gap_ns, c->fd, c->generation});
        return;
    }
    while (c->chunks_left) send_chunk(c);
    send_end(c);
}

/* --- requests --------------------------------------------------------------------------------- */

/* Length of the first request in the buffer, 0 while it is not whole. */
static size_t whole_request(struct buffer *in, size_t *body_at) {
    char *end = in->length ? strstr(in->bytes, "\r\n\r\n") : NULL;
    if (!end) return 0;
    *body_at = (size_t)(end - in->bytes) + 4;
    *end = 0; /* header searches stop at the head's end */
    char *given = strcasestr(in->bytes, "\ncontent-length:");
    int chunked = strcasestr(in->bytes, "\ntransfer-encoding: chunked") != NULL;
    size_t body = given ? strtoul(given + 16, NULL, 10) : 0;
    *end = '\r';
    if (chunked) {
        char *last = strstr(in->bytes + *body_at, "0\r\n\r\n");
        return last ? (size_t)(last - in->bytes) + 5 : 0;
    }
    return in->length >= *body_at + body ? *body_at + body : 0;
}

static int asks(const char *body, size_t length, const char *name) {
    char tight[64], loose[64];
    snprintf(tight, sizeof tight, "\"%s\":true", name);
    snprintf(loose, sizeof loose, "\"%s\": true", name);
    return memmem(body, length, tight, strlen(tight)) || memmem(body, length, loose, strlen(loose));
}

static void answer_requests(struct connection *c) {
    size_t body_at, length;
    while (!c->chunks_left && (length = whole_request(&c->in, &body_at))) {
        const char *body = c->in.bytes + body_at;
        int get = !strncmp(c->in.bytes, "GET", 3);
        int stream = !get && asks(body, length - body_at, "stream");
        c->usage = stream && asks(body, length - body_at, "include_usage");
        c->token_ids = stream && asks(body, length - body_at, "return_token_ids");
        drop_front(&c->in, length);
        if (stream)
            begin_stream(c);
        else if (get)
            send_json(c, "{\"object\":\"list\",\"data\":[{\"id\":\"demo\",\"object\":\"model\","
                         "\"created\":1,\"owned_by\":\"mock\",\"max_model_len\":4096}],"
                         "\"status\":\"ok\",\"model_path\":\"demo\",\"is_generation\":true}");
        else
            send_json(c, "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,"
                         "\"model\":\"demo\",\"choices\":[{\"index\":0,\"message\":{"
                         "\"role\":\"assistant\",\"content\":\"A canned answer of a mock.\"},"
                         "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{"
                         "\"prompt_tokens\":9,\"completion_tokens\":12,\"total_tokens\":21}}");
    }
}

static void stream_on(uint64_t now) {
    while (timers && heap[0].at <= now) {
        struct timer t = first_timer();
        struct connection *c = connections[t.fd];
        if (c->generation != t.generation || !c->chunks_left) continue;
        send_chunk(c);
        if (c->chunks_left) {
            add_timer((struct timer){t.at + gap_ns, t.fd, t.generation});
        } else {
            send_end(c);
            answer_requests(c);
        }
    }
}

static void accept_all(int ep, int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        no_delay(fd);
        if (!connections[fd]) connections[fd] = calloc(1, sizeof(struct connection));
        struct connection *c = connections[fd];
        c->fd = fd;
        c->chunks_left = 0;
        c->in.length = 0;
        c->generation++;
        watch(ep, fd, c);
    }
}

static void close_connection(struct connection *c) {
    c->generation++;
    c->chunks_left = 0;
    close(c->fd);
}

int main(int count, char **given) {
    if (count != 5) {
        fputs("usage: mock IP PORT CHUNKS GAP_US\n", stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    chunks_per_answer = atoi(given[3]);
    gap_ns = strtoull(given[4], NULL, 10) * NS_PER_US;
    struct sockaddr_in where = address(given[1], atoi(given[2]));
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&where, sizeof where) || listen(listener, 4096))
        die("listen");
    int ep = epoll_create1(0), clock = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(ep, listener, &listener);
    watch(ep, clock, &clock);
    struct epoll_event events[512];
    for (;;) {
        uint64_t next = timers ? heap[0].at : 0;
        struct itimerspec at = {{0, 0}, {(time_t)(next / NS_PER_S), (long)(next % NS_PER_S)}};
        timerfd_settime(clock, TFD_TIMER_ABSTIME, &at, NULL);
        int ready = epoll_wait(ep, events, 512, -1);
        for (int i = 0; i < ready; i++) {
            void *who = events[i].data.ptr;
            if (who == &clock) continue;
            if (who == &listener) {
                accept_all(ep, listener);
                continue;
            }
            struct connection *c = who;
            int came = read_some(c->fd, &c->in);
            if (came < 0)
                close_connection(c);
            else if (came > 0)
                answer_requests(c);
        }
        stream_on(now_ns());
    }
}
