/* Lines for people on standard error: "12:34:56 actor-1 | text". One write per line, so that lines of
 * several processes never mix. */
#ifndef IFL_COMMON_LOG_H
#define IFL_COMMON_LOG_H

typedef enum { IFL_LOG_DEBUG, IFL_LOG_INFO, IFL_LOG_WARN, IFL_LOG_ERROR } ifl_log_level;

/* `name` is copied (31 bytes); call before threads start. */
void ifl_log_setup(const char *name, ifl_log_level level);
void ifl_log(ifl_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define ifl_debug(...) ifl_log(IFL_LOG_DEBUG, __VA_ARGS__)
#define ifl_info(...) ifl_log(IFL_LOG_INFO, __VA_ARGS__)
#define ifl_warn(...) ifl_log(IFL_LOG_WARN, __VA_ARGS__)
#define ifl_error_log(...) ifl_log(IFL_LOG_ERROR, __VA_ARGS__)

#endif
