/* A palette of at most 256 colours for a set of pictures. Private to video_*.c. */
#ifndef KN_DATA_VIDEO_PALETTE_H
#define KN_DATA_VIDEO_PALETTE_H

#include <stddef.h>
#include <stdint.h>

typedef struct KnPalette KnPalette;

KnPalette *kn_palette_create(void);
void kn_palette_destroy(KnPalette *palette); /* NULL is fine */

void kn_palette_count(KnPalette *palette, const uint8_t *rgb, size_t pixels); /* adds pixels to the statistics */
void kn_palette_solve(KnPalette *palette);                                    /* then: chooses the colours */

/* After solve: the colours as 0xffRRGGBB, and the index of each pixel's. */
void kn_palette_colours(const KnPalette *palette, uint32_t colours[256]);
void kn_palette_apply(const KnPalette *palette, const uint8_t *rgb, size_t pixels, uint8_t *indices);

#endif
