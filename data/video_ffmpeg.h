/* What the files that use FFmpeg share: its log kept off the terminal, and its errors as words. Private to video_*.c.
 */
#ifndef KN_DATA_VIDEO_FFMPEG_H
#define KN_DATA_VIDEO_FFMPEG_H

/* Silences FFmpeg for the process and forgets this thread's last message. Call before work whose failure is told. */
void kn_ffmpeg_quiet(void);

/* "Invalid data found when processing input (moov atom not found)": the code's text and the thread's last error
 * message, if any. Valid until the thread's next call. */
const char *kn_ffmpeg_why(int code);

#endif
