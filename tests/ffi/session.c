/* What a program in C may do with ztun, and what it may not, checked step by step; `tests/ffi.rs` builds and runs it.
 *
 * Without arguments: what is refused without a device. With PROXY TARGET TARGET6 PORT: TCP and UDP through the devices tunc0 (IPv4) and tunc1 (IPv6), which are
 * set up and routed, to echoes at both targets. It ends with status 0 when all is as it should be.
 */
#define _GNU_SOURCE
#include "ztun.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netdb.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n  last error: %s\n", __FILE__, __LINE__, #condition,       \
                    ztun_last_error());                                                            \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* What the log callback has seen; the library calls it one line at a time. */
struct log {
    pthread_mutex_t lock;
    int lines;
    int ready;
    int changes;
    pthread_cond_t changed;
    /* Of one session, as it says them: "Starting -> Running". */
    char steps[32][40];
    int count;
    ztun_session *session;
    int refused;
};

static struct log seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void on_log(void *user, enum ztun_level level, const char *text) {
    struct log *log = user;
    pthread_mutex_lock(&log->lock);
    log->lines++;
    CHECK(level >= ZTUN_LEVEL_ERROR && level <= ZTUN_LEVEL_DEBUG);
    CHECK(strchr(text, '\n') == NULL);
    if (strncmp(text, "ready: ", 7) == 0) {
        log->ready++;
    }
    if (strcmp(text, "the program says that the network has changed") == 0) {
        log->changes++;
        pthread_cond_signal(&log->changed);
    }
    if (strncmp(text, "session: ", 9) == 0 && log->count < 32) {
        snprintf(log->steps[log->count++], sizeof log->steps[0], "%s", text + 9);
    }
    /* What never waits is allowed here; what might is refused. */
    if (log->session != NULL) {
        (void)ztun_state(log->session);
        if (ztun_stop(log->session, 1) == ZTUN_CODE_CALLBACK &&
            strstr(ztun_last_error(), "callback") != NULL) {
            log->refused++;
        }
    }
    pthread_mutex_unlock(&log->lock);
}

struct protector {
    pthread_mutex_t lock;
    int asked;
    bool answer;
    pthread_t caller;
};

static bool on_protect(void *user, int descriptor) {
    struct protector *protector = user;
    int type = 0;
    socklen_t size = sizeof type;
    struct sockaddr_storage peer;
    socklen_t peer_size = sizeof peer;
    pthread_mutex_lock(&protector->lock);
    protector->asked++;
    /* A socket, and not connected yet. */
    CHECK(getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &size) == 0);
    CHECK(getpeername(descriptor, (struct sockaddr *)&peer, &peer_size) != 0 && errno == ENOTCONN);
    CHECK(!pthread_equal(pthread_self(), protector->caller));
    bool answer = protector->answer;
    pthread_mutex_unlock(&protector->lock);
    return answer;
}

static int asked(struct protector *protector) {
    pthread_mutex_lock(&protector->lock);
    int asked = protector->asked;
    pthread_mutex_unlock(&protector->lock);
    return asked;
}

static int entries(const char *path) {
    DIR *dir = opendir(path);
    CHECK(dir != NULL);
    int count = 0;
    while (readdir(dir) != NULL) {
        count++;
    }
    closedir(dir);
    return count;
}

static int descriptors(void) { return entries("/proc/self/fd"); }

/* Threads end a moment after their sessions. `alarm` ends a wait that has no end. */
static void only_thread(void) {
    while (entries("/proc/self/task") > 3) {
        sched_yield();
    }
}

/* What is the process's, and not the library's to change. */
struct process {
    struct rlimit files;
    struct sigaction actions[4];
    sigset_t mask;
};

static const int SIGNALS[4] = {SIGPIPE, SIGINT, SIGTERM, SIGHUP};

static struct process process(void) {
    struct process process;
    memset(&process, 0, sizeof process);
    CHECK(getrlimit(RLIMIT_NOFILE, &process.files) == 0);
    for (int i = 0; i < 4; i++) {
        CHECK(sigaction(SIGNALS[i], NULL, &process.actions[i]) == 0);
    }
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &process.mask) == 0);
    return process;
}

static void unchanged(const struct process *before) {
    struct process now = process();
    CHECK(now.files.rlim_cur == before->files.rlim_cur);
    CHECK(now.files.rlim_max == before->files.rlim_max);
    for (int i = 0; i < 4; i++) {
        CHECK(now.actions[i].sa_handler == before->actions[i].sa_handler);
        CHECK(sigismember(&now.mask, SIGNALS[i]) == sigismember(&before->mask, SIGNALS[i]));
    }
}

static int open_tun(const char *name) {
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    struct ifreq request;
    memset(&request, 0, sizeof request);
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    CHECK(ioctl(fd, TUNSETIFF, &request) == 0);
    return fd;
}

/* A socket of the kind `type`, connected to the target, or -1. */
static int dial(const char *target, const char *port, int type) {
    struct addrinfo hints;
    struct addrinfo *found = NULL;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = type;
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    CHECK(getaddrinfo(target, port, &hints, &found) == 0);
    int fd = socket(found->ai_family, type, 0);
    CHECK(fd >= 0);
    struct timeval limit = {.tv_sec = 60};
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0);
    int connected = connect(fd, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    if (connected != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

#define OCTETS 100000

static void tcp_echo(const char *target, const char *port) {
    static unsigned char out[OCTETS], in[OCTETS];
    for (int i = 0; i < OCTETS; i++) {
        out[i] = (unsigned char)(i * 7);
    }
    int fd = dial(target, port, SOCK_STREAM);
    CHECK(fd >= 0);
    size_t sent = 0, got = 0;
    while (got < OCTETS) {
        if (sent < OCTETS) {
            size_t piece = OCTETS - sent < 10000 ? OCTETS - sent : 10000;
            ssize_t taken = send(fd, out + sent, piece, MSG_NOSIGNAL);
            CHECK(taken > 0);
            sent += (size_t)taken;
        }
        ssize_t read = recv(fd, in + got, OCTETS - got, 0);
        CHECK(read > 0);
        got += (size_t)read;
    }
    CHECK(memcmp(out, in, OCTETS) == 0);
    close(fd);
}

static void udp_echo(const char *target, const char *port) {
    int fd = dial(target, port, SOCK_DGRAM);
    CHECK(fd >= 0);
    char in[16];
    CHECK(send(fd, "datagram", 8, 0) == 8);
    CHECK(recv(fd, in, sizeof in, 0) == 8);
    CHECK(memcmp(in, "datagram", 8) == 0);
    close(fd);
}

/* The number behind a key of the status. */
static long number(const char *status, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(status, quoted);
    CHECK(at != NULL);
    return atol(at + strlen(quoted));
}

/* A key of the status has this number. */
static void expect_number(const char *status, const char *key, long expected) {
    if (number(status, key) != expected) {
        fprintf(stderr, "%s is not %ld in %s\n", key, expected, status);
        exit(1);
    }
}

static void refusals(const char *config) {
    CHECK(strlen(ztun_version()) > 0);
    CHECK(strcmp(ztun_last_error(), "") == 0);

    CHECK(ztun_start(NULL, 0, config) == ZTUN_CODE_ARGUMENT);
    CHECK(strcmp(ztun_last_error(), "the session is NULL") == 0);
    CHECK(ztun_restart(NULL, 0, config) == ZTUN_CODE_ARGUMENT);
    CHECK(ztun_stop(NULL, 0) == ZTUN_CODE_ARGUMENT);
    CHECK(ztun_set_protect(NULL, on_protect, NULL) == ZTUN_CODE_ARGUMENT);
    CHECK(ztun_stats(NULL) == NULL);
    CHECK(ztun_network_changed(NULL) == ZTUN_CODE_ARGUMENT);
    CHECK(ztun_state(NULL) == ZTUN_SESSION_STATE_IDLE);
    CHECK(ztun_free(NULL) == ZTUN_CODE_OK);
    ztun_text_free(NULL);
    CHECK(ztun_set_log(on_log, &seen, 6) == ZTUN_CODE_ARGUMENT);

    ztun_session *session = ztun_new();
    CHECK(session != NULL);
    CHECK(ztun_stop(session, 1000) == ZTUN_CODE_OK);
    CHECK(ztun_state(session) == ZTUN_SESSION_STATE_IDLE);
    CHECK(ztun_stats(session) == NULL);
    CHECK(ztun_network_changed(session) == ZTUN_CODE_STATE);
    CHECK(ztun_start(session, 0, NULL) == ZTUN_CODE_ARGUMENT);
    CHECK(ztun_start(session, -1, config) == ZTUN_CODE_ARGUMENT);
    CHECK(ztun_start(session, 0, "socks5 = ['\xff']") == ZTUN_CODE_ARGUMENT);
    CHECK(ztun_start(session, 0, "") == ZTUN_CODE_CONFIG);
    CHECK(strstr(ztun_last_error(), "no proxy is given") != NULL);
    CHECK(ztun_start(session, 0, "socks5 = ['127.0.0.1:1']\nkill-switch = true\n") == ZTUN_CODE_CONFIG);
    CHECK(strstr(ztun_last_error(), "config:2: kill-switch has no meaning in a library") != NULL);

    int before = descriptors();
    int file = open("/dev/null", O_RDWR);
    CHECK(file >= 0);
    CHECK(ztun_start(session, file, config) == ZTUN_CODE_SYSTEM);
    CHECK(strstr(ztun_last_error(), "as a TUN device") != NULL);
    CHECK(ztun_state(session) == ZTUN_SESSION_STATE_STOPPED);
    only_thread();
    CHECK(fcntl(file, F_GETFD) >= 0);
    close(file);
    CHECK(descriptors() == before);
    CHECK(ztun_stop(session, 1000) == ZTUN_CODE_OK);
    CHECK(ztun_free(session) == ZTUN_CODE_OK);
}

/* A run that is told of another network looks, and carries what it carried: as often as it is told, without anybody waiting. */
static void network_changed(ztun_session *session, const char *target, const char *port) {
    int fd = dial(target, port, SOCK_STREAM);
    CHECK(fd >= 0);
    pthread_mutex_lock(&seen.lock);
    int before = seen.changes;
    pthread_mutex_unlock(&seen.lock);
    for (int i = 0; i < 500; i++) {
        CHECK(ztun_network_changed(session) == ZTUN_CODE_OK);
    }
    pthread_mutex_lock(&seen.lock);
    while (seen.changes == before) {
        pthread_cond_wait(&seen.changed, &seen.lock);
    }
    pthread_mutex_unlock(&seen.lock);
    char in[4];
    CHECK(send(fd, "live", 4, MSG_NOSIGNAL) == 4);
    CHECK(recv(fd, in, sizeof in, MSG_WAITALL) == 4 && memcmp(in, "live", 4) == 0);
    close(fd);
    tcp_echo(target, port);
}

/* One session from its start to its end, with a restart between. */
static void one_session(const char *config, const char *target, const char *port, int tun) {
    struct protector protector = {
        .lock = PTHREAD_MUTEX_INITIALIZER, .answer = true, .caller = pthread_self()};
    struct process before = process();
    ztun_session *session = ztun_new();
    CHECK(session != NULL);
    pthread_mutex_lock(&seen.lock);
    seen.session = session;
    seen.count = 0;
    seen.ready = 0;
    pthread_mutex_unlock(&seen.lock);

    CHECK(ztun_set_protect(session, on_protect, &protector) == ZTUN_CODE_OK);
    CHECK(ztun_start(session, tun, config) == ZTUN_CODE_OK);
    CHECK(ztun_state(session) == ZTUN_SESSION_STATE_RUNNING);
    CHECK(ztun_start(session, tun, config) == ZTUN_CODE_STATE);
    CHECK(strcmp(ztun_last_error(), "the session is Running already") == 0);
    unchanged(&before);

    tcp_echo(target, port);
    udp_echo(target, port);
    /* At least one connection to the proxy, and one association with its datagrams. */
    CHECK(asked(&protector) >= 3);
    char *status = ztun_stats(session);
    CHECK(status != NULL);
    CHECK(strstr(status, "\"state\":\"running\"") != NULL);
    CHECK(strstr(status, "\"name\":\"tunc") != NULL);
    expect_number(status, "upload_bytes", OCTETS);
    expect_number(status, "download_bytes", OCTETS);
    expect_number(status, "datagrams_sent", 1);
    expect_number(status, "datagrams_received", 1);
    ztun_text_free(status);

    /* What is refused at once leaves the run alone. */
    CHECK(ztun_restart(session, tun, "mtu = 1400") == ZTUN_CODE_CONFIG);
    CHECK(ztun_restart(session, -1, NULL) == ZTUN_CODE_ARGUMENT);
    CHECK(ztun_state(session) == ZTUN_SESSION_STATE_RUNNING);
    tcp_echo(target, port);

    /* The configuration of the start, and the callback too. */
    CHECK(ztun_restart(session, tun, NULL) == ZTUN_CODE_OK);
    CHECK(ztun_state(session) == ZTUN_SESSION_STATE_RUNNING);
    int asked_before = asked(&protector);
    tcp_echo(target, port);
    udp_echo(target, port);
    CHECK(asked(&protector) > asked_before);
    status = ztun_stats(session);
    CHECK(status != NULL);
    expect_number(status, "upload_bytes", OCTETS);
    ztun_text_free(status);
    network_changed(session, target, port);

    CHECK(ztun_stop(session, 10000) == ZTUN_CODE_OK);
    CHECK(ztun_network_changed(session) == ZTUN_CODE_STATE);
    CHECK(ztun_state(session) == ZTUN_SESSION_STATE_STOPPED);
    CHECK(ztun_stop(session, 10000) == ZTUN_CODE_OK);
    CHECK(ztun_stats(session) == NULL);
    unchanged(&before);

    /* A socket that is not protected is not used: the flow fails. */
    pthread_mutex_lock(&protector.lock);
    protector.answer = false;
    pthread_mutex_unlock(&protector.lock);
    asked_before = asked(&protector);
    CHECK(ztun_restart(session, tun, NULL) == ZTUN_CODE_OK);
    CHECK(dial(target, port, SOCK_STREAM) == -1);
    CHECK(asked(&protector) > asked_before);
    CHECK(ztun_stop(session, 10000) == ZTUN_CODE_OK);

    static const char *const STEPS[] = {
        "Idle -> Starting",    "Starting -> Running", "Running -> Stopping", "Stopping -> Stopped",
        "Stopped -> Starting", "Starting -> Running", "Running -> Stopping", "Stopping -> Stopped",
        "Stopped -> Starting", "Starting -> Running", "Running -> Stopping", "Stopping -> Stopped",
    };
    pthread_mutex_lock(&seen.lock);
    CHECK(seen.ready == 3 && seen.refused > 0);
    CHECK(seen.count == sizeof STEPS / sizeof STEPS[0]);
    for (int i = 0; i < seen.count; i++) {
        CHECK(strcmp(seen.steps[i], STEPS[i]) == 0);
    }
    seen.session = NULL;
    pthread_mutex_unlock(&seen.lock);
    CHECK(ztun_free(session) == ZTUN_CODE_OK);
}

static void *stop_it(void *session) {
    CHECK(ztun_stop(session, 10000) == ZTUN_CODE_OK);
    CHECK(ztun_state(session) == ZTUN_SESSION_STATE_STOPPED);
    return NULL;
}

/* Two at once, each on its device; one is stopped by several threads, the other loses its device. */
static void two_sessions(const char *config, char **targets, const char *port, const int *tuns) {
    ztun_session *first = ztun_new();
    ztun_session *second = ztun_new();
    CHECK(ztun_start(first, tuns[0], config) == ZTUN_CODE_OK);
    CHECK(ztun_start(second, tuns[1], config) == ZTUN_CODE_OK);
    tcp_echo(targets[0], port);
    tcp_echo(targets[1], port);
    udp_echo(targets[1], port);

    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, stop_it, first) == 0);
    }
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(ztun_state(second) == ZTUN_SESSION_STATE_RUNNING);
    tcp_echo(targets[1], port);

    /* A device that is gone ends its run; the stop tells why, once. */
    CHECK(system("ip link delete tunc1") == 0);
    while (ztun_state(second) != ZTUN_SESSION_STATE_STOPPED) {
        sched_yield();
    }
    CHECK(ztun_stop(second, 10000) == ZTUN_CODE_SYSTEM);
    CHECK(strstr(ztun_last_error(), "the event loop failed") != NULL);
    CHECK(ztun_stop(second, 10000) == ZTUN_CODE_OK);
    CHECK(ztun_free(second) == ZTUN_CODE_OK);

    /* One that runs is stopped when it is freed. */
    CHECK(ztun_start(first, tuns[0], NULL) == ZTUN_CODE_OK);
    tcp_echo(targets[0], port);
    CHECK(ztun_free(first) == ZTUN_CODE_OK);
}

int main(int argc, char **argv) {
    /* What waits without end is ended. */
    alarm(300);
    char config[128];
    snprintf(config, sizeof config, "socks5 = ['%s']\n", argc == 5 ? argv[1] : "127.0.0.1:1080");
    refusals(config);
    if (argc == 5) {
        CHECK(ztun_set_log(on_log, &seen, ZTUN_LEVEL_DEBUG) == ZTUN_CODE_OK);
        int before = descriptors();
        int tuns[2] = {open_tun("tunc0"), open_tun("tunc1")};
        one_session(config, argv[2], argv[4], tuns[0]);
        two_sessions(config, argv + 2, argv[4], tuns);
        only_thread();
        /* They are the caller's still, and nothing else is open. */
        struct ifreq request;
        CHECK(ioctl(tuns[0], TUNGETIFF, &request) == 0);
        close(tuns[0]);
        close(tuns[1]);
        CHECK(descriptors() == before);
        CHECK(ztun_set_log(NULL, NULL, ZTUN_LEVEL_OFF) == ZTUN_CODE_OK);
        CHECK(seen.lines > 0);
    }
    return 0;
}
