/* FFmpeg's log and errors. Its messages go to one callback for the whole process; the last error of each thread is
 * kept there, to end the sentence that a caller makes. Messages of decoder threads are dropped. */
#include "data/video_ffmpeg.h"

#include <libavutil/error.h>
#include <libavutil/log.h>

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_message[256];

static void keep_message(void *context, int level, const char *format, va_list arguments)
{
    (void)context;
    if (level > AV_LOG_ERROR)
        return;
    char line[sizeof last_message];
    vsnprintf(line, sizeof line, format, arguments);
    size_t length = strlen(line);
    while (length > 0 && strchr("\n\r .", line[length - 1]))
        line[--length] = '\0';
    if (length > 0)
        memcpy(last_message, line, length + 1);
}

static void set_callback(void)
{
    av_log_set_callback(keep_message);
}

void kn_ffmpeg_quiet(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, set_callback);
    last_message[0] = '\0';
}

const char *kn_ffmpeg_why(int code)
{
    static _Thread_local char text[AV_ERROR_MAX_STRING_SIZE + sizeof last_message + 8];
    char words[AV_ERROR_MAX_STRING_SIZE];
    av_strerror(code, words, sizeof words);
    if (last_message[0])
        snprintf(text, sizeof text, "%s (%s)", words, last_message);
    else
        snprintf(text, sizeof text, "%s", words);
    return text;
}
