/* The C library of ztun: docs/library.md has an example. Made of src/ffi by cbindgen: `ZTUN_WRITE_HEADER=1 cargo test --test ffi header`. */

#ifndef ZTUN_H
#define ZTUN_H

#include <stdbool.h>
#include <stdint.h>

/**
 * What a function answers. Anything but ZTUN_CODE_OK has left a text for ztun_last_error().
 */
typedef enum ztun_code {
    /**
     * It is done.
     */
    ZTUN_CODE_OK = 0,
    /**
     * An argument is NULL or no text in UTF-8 where that is not allowed, or a descriptor is not open.
     */
    ZTUN_CODE_ARGUMENT = -1,
    /**
     * The configuration is refused, in the words of `ztun --config`.
     */
    ZTUN_CODE_CONFIG = -2,
    /**
     * The session is not in a state for that.
     */
    ZTUN_CODE_STATE = -3,
    /**
     * The system, or the device, refuses what a run needs; or a run has failed.
     */
    ZTUN_CODE_SYSTEM = -4,
    /**
     * `require-proxy` is on, and no proxy can be used.
     */
    ZTUN_CODE_PROXY = -5,
    /**
     * The function was called from a callback, where it is not allowed.
     */
    ZTUN_CODE_CALLBACK = -6,
    /**
     * It did not end in time and was given up. Its thread is left behind; its callbacks are called no more, but for one that has not returned.
     */
    ZTUN_CODE_FORCED = -7,
    /**
     * ztun has a bug. The session is stopped and can be started again.
     */
    ZTUN_CODE_PANIC = -8,
} ztun_code;

/**
 * How much is logged, and how grave a line is.
 */
typedef enum ztun_level {
    /**
     * Nothing.
     */
    ZTUN_LEVEL_OFF = 0,
    /**
     * Something is broken.
     */
    ZTUN_LEVEL_ERROR = 1,
    /**
     * Something needs a person.
     */
    ZTUN_LEVEL_WARN = 2,
    /**
     * What a run does.
     */
    ZTUN_LEVEL_INFO = 3,
    /**
     * Names, addresses and flows.
     */
    ZTUN_LEVEL_DEBUG = 4,
    /**
     * Packets.
     */
    ZTUN_LEVEL_TRACE = 5,
} ztun_level;

/**
 * Where a session stands.
 */
typedef enum ztun_session_state {
    /**
     * It was never started.
     */
    ZTUN_SESSION_STATE_IDLE = 0,
    /**
     * It is being started.
     */
    ZTUN_SESSION_STATE_STARTING = 1,
    /**
     * Traffic flows.
     */
    ZTUN_SESSION_STATE_RUNNING = 2,
    /**
     * It was asked to stop and is closing what it has. One that fails by itself is running until it is stopped.
     */
    ZTUN_SESSION_STATE_STOPPING = 3,
    /**
     * It has ended, and holds nothing any more.
     */
    ZTUN_SESSION_STATE_STOPPED = 4,
} ztun_session_state;

/**
 * A session. All of it may be used from any thread.
 */
typedef struct ztun_session ztun_session;

/**
 * Takes a line of the log: one line, without its line feed, in UTF-8 and without control characters. `text` is ztun's and is gone when the call
 * returns.
 */
typedef void (*ztun_log_callback)(void *user, enum ztun_level level, const char *text);

/**
 * Keeps a socket outside the tunnel, as Android's VpnService.protect() does: true when that is done; with false the flow fails that the socket is
 * for. The descriptor is ztun's: it must not be closed, and may be another socket's as soon as the call has returned.
 */
typedef bool (*ztun_protect_callback)(void *user, int descriptor);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of this library, as in "1.2.3". The text is the library's, and is never freed. May be called from anywhere, callbacks included.
 */
const char *ztun_version(void);

/**
 * What the last call on this thread that failed had to say: what failed and why, and perhaps in a second line what to try. Empty before the first
 * failure, never NULL. The text is the library's, and is valid until the next call on this thread that fails, and no longer than the thread. May be
 * called from anywhere, callbacks included.
 */
const char *ztun_last_error(void);

/**
 * Sends the log of all sessions to `callback`, from `level` (a ztun_level) upwards. Until this is called nothing is logged anywhere, and NULL goes back
 * to that.
 *
 * The callback runs on the thread that has something to log: that of a session, or any that calls a function of this library; never two at a
 * time. It must return soon, since packets wait for it, must not throw or longjmp, and must wait neither for a thread that is in a function of this library
 * nor for a lock that such a thread holds. Of this library it may call ztun_version, ztun_last_error, ztun_state and ztun_text_free.
 *
 * `user` is handed back with each call, and is not looked at. It stays the caller's and has to be valid until this function has been called again and has
 * returned: from then on the callback before is called no more.
 *
 * # Safety
 *
 * `callback` may be called from any thread with `user`.
 */
enum ztun_code ztun_set_log(ztun_log_callback callback,
                            void *user,
                            int level);

/**
 * A session that was never started, the caller's until ztun_free. Any number of them may be there and run at once, each on a device of its own. NULL
 * when it was called from a callback.
 *
 * All functions that take a session may be called from any thread, at the same time as others, but for ztun_free, which is the last.
 */
struct ztun_session *ztun_new(void);

/**
 * Stops the session like ztun_stop, with a limit of 10 seconds, and frees it: no function may be called with it any more. NULL is no session, and nothing is
 * done. From a callback it is refused, with ZTUN_CODE_CALLBACK, and the session is still there; whatever else it answers, the session is gone.
 *
 * # Safety
 *
 * `session` is NULL or came from ztun_new and was not freed; no other thread is in a function with it.
 */
enum ztun_code ztun_free(struct ztun_session *session);

/**
 * Has `callback` asked about each socket that ztun opens towards the outside, before that is connected or sends anything: for runs that are started
 * from here on. NULL: nobody is asked.
 *
 * The callback runs on the thread of the session, for connections to the proxy, for datagrams and for what goes out directly. It must return soon, since
 * packets wait for it, must not throw or longjmp, and may call what a log callback may.
 *
 * `user` is handed back with each call, and is not looked at. It stays the caller's and has to be valid until the runs that were started with it have
 * ended: when ztun_stop has answered anything but ZTUN_CODE_FORCED the callback is called no more. After that answer only a call that was
 * under way may still go on.
 *
 * # Safety
 *
 * `session` is NULL or came from ztun_new; `callback` may be called from any thread with `user`.
 */
enum ztun_code ztun_set_protect(struct ztun_session *session,
                                ztun_protect_callback callback,
                                void *user);

/**
 * Starts the session on a TUN device that is open, configured and routed into, and returns when traffic flows, or when it has failed. Names of proxies are
 * resolved meanwhile, which may take as long as the system's resolver does. What is refused has changed nothing.
 *
 * `tun_fd` stays the caller's: ztun works on a duplicate, which it closes when the run ends. The caller may close his as soon as this has returned; a device lives
 * as long as one of the two is open. What both share is the open file: it is made non-blocking. On Linux and Android it has to be a TUN device without
 * packet information (IFF_TUN and IFF_NO_PI), on iOS and macOS a utun.
 *
 * `config` is the text of a file of options in TOML, as `ztun --config` has it, in UTF-8: socks5 = ["127.0.0.1:1080"]. It is copied. NULL takes that of the
 * last start of this session that worked. Options that say how to change the machine, or how to log, are refused: this library changes neither
 * addresses nor routes nor name servers, no limit and no privilege of the process, and no signal; it only blocks SIGPIPE on threads of its own.
 *
 * The run has a thread of its own. It may end by itself, as when the device is gone: see ztun_state and ztun_stop.
 *
 * ZTUN_CODE_STATE when the session is running, or was stopped by another thread while it started.
 *
 * # Safety
 *
 * `session` is NULL or came from ztun_new; `config` is NULL or ends with NUL; nobody closes `tun_fd` meanwhile.
 */
enum ztun_code ztun_start(struct ztun_session *session,
                          int tun_fd,
                          const char *config);

/**
 * Stops the session's run, if there is one, and starts the next, as ztun_start does. A configuration or a descriptor that is refused at once leaves the first run
 * alone; what the system refuses later leaves the session stopped. The run before has 5 seconds to end, and is given up then.
 *
 * # Safety
 *
 * As for ztun_start.
 */
enum ztun_code ztun_restart(struct ztun_session *session,
                            int tun_fd,
                            const char *config);

/**
 * Stops the session's run, if there is one, and returns when everything of it is closed: connections are ended in order, which takes up to 3 seconds
 * where the other side does not answer. After `limit_ms` milliseconds it is given up: ZTUN_CODE_FORCED. Any number of threads may stop one session; all wait for
 * the same end. A session that does not run is stopped already.
 *
 * A run that had failed, by itself or while it stopped, is told of here, once: ZTUN_CODE_SYSTEM or ZTUN_CODE_PANIC. The session is stopped all the same.
 *
 * # Safety
 *
 * `session` is NULL, which is ZTUN_CODE_ARGUMENT, or came from ztun_new.
 */
enum ztun_code ztun_stop(struct ztun_session *session,
                         uint32_t limit_ms);

/**
 * Tells the session that the machine's network is another: Wi-Fi has gone, mobile data has come. To be called where the system tells the program and not ztun: on
 * Android from ConnectivityManager.NetworkCallback, on iOS from NWPathMonitor. Elsewhere ztun hears of it by itself, and a call does no harm; how often
 * it is called matters little, since calls in quick succession count as one.
 *
 * The session's own thread looks, a third of a second later: connections whose address the machine no longer has are ended or made again, those that live stay,
 * and new ones leave by the network that there is then. ZTUN_CODE_STATE when the session is not running.
 *
 * # Safety
 *
 * `session` is NULL, which is ZTUN_CODE_ARGUMENT, or came from ztun_new.
 */
enum ztun_code ztun_network_changed(const struct ztun_session *session);

/**
 * Where the session stands. It never waits, and may be called from callbacks. NULL was never started.
 *
 * # Safety
 *
 * `session` is NULL or came from ztun_new.
 */
enum ztun_session_state ztun_state(const struct ztun_session *session);

/**
 * How the run is, as `ztun status --json` tells it: one JSON object in UTF-8, described in docs/CONTROL.md. Fields may be added in later versions. The text
 * is the caller's, to be freed by ztun_text_free. The run's own thread answers between two packets; one that has not answered after 5 seconds is no
 * longer waited for. NULL when the session is NULL or not running, or does not answer.
 *
 * # Safety
 *
 * `session` is NULL or came from ztun_new.
 */
char *ztun_stats(const struct ztun_session *session);

/**
 * Frees a text of ztun_stats; nothing else may be given to it, and no text twice. NULL is no text, and nothing is done. May be called from anywhere,
 * callbacks included.
 *
 * # Safety
 *
 * `text` is NULL or came from ztun_stats and was not freed.
 */
void ztun_text_free(char *text);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* ZTUN_H */
