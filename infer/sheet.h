/* Contact sheets of generated clips: a few frames of each, gathered as clips are finished. */
#ifndef KN_INFER_SHEET_H
#define KN_INFER_SHEET_H

#include "infer/request.h"

typedef struct KnContactSheet KnContactSheet;

/* Before hours of work: whether `path` ends in .png and can be written. Makes its folder. */
int kn_contact_sheet_check(const char *path);

/* Room for `count` clips, of which the first hundred or so are shown. */
KnContactSheet *kn_contact_sheet_create(int count);
void kn_contact_sheet_destroy(KnContactSheet *sheet); /* NULL is fine */

/* Keeps copies of up to eight frames of u8 [frames][height][width][3]; `mark` and captions as in core/base/draw.h. */
void kn_contact_sheet_set(KnContactSheet *sheet, int index, const KnRequest *request, const uint8_t *pixels,
                          const char *caption, int mark);

/* The same from the finished video, with its prompt as caption. KN_EIO or KN_EFORMAT where it cannot be read. */
int kn_contact_sheet_read(KnContactSheet *sheet, int index, const KnRequest *request);

/* Draws what was set so far, in the order of indices. */
int kn_contact_sheet_write(const KnContactSheet *sheet, const char *path, const char *title, const char *subtitle);

#endif
