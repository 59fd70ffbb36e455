/* What a device can do: how fast it computes and moves bytes, how much it holds, what links ranks.
 *
 * A device is a YAML document: those that are built in (kn_device_names) and files that `kinora bench calibrate`
 * writes; one that begins with `like: NAME` is that device, but for what follows. Rates are curves: for a kind of work,
 * a dtype and a width, the FLOP or bytes a second that one node of a size reaches. A kind is an op's name, or a class
 * that stands for all ops without a curve of their own: `matmul`, `attention`, `memory`. What ranks exchange is priced
 * by the links, or by curves named after the exchange where these were measured.
 *
 * A device may have finer curves of products: `matmul_input` for gradients of inputs, `matmul_accumulated` for
 * those of weights that are added to a sum, `matmul_gelu`, `matmul_deep` and `matmul_input_deep` for sums more than
 * four times as long as rows are wide; `own_attention_few_keys` for what kn_attention_has_few_keys says; and where a
 * backend says by which kernels a node runs, curves named after these. */
#ifndef KN_DIST_DEVICE_H
#define KN_DIST_DEVICE_H

#include "core/base/memory.h"
#include "core/base/text.h"
#include "core/graph/executor.h"

enum { KN_RATE_POINTS = 24 };

typedef struct KnRatePoint {
    double size; /* FLOP or bytes of one node; of attention: keys that a query sees */
    double rate; /* FLOP or bytes a second, beyond the overhead of a node */
} KnRatePoint;

typedef struct KnRate {
    char kind[32];
    int dtype;     /* KnDtype of the first operand; KN_DTYPE_COUNT: any */
    int64_t width; /* smallest side of a product, head size, columns, ranks of an exchange; 0: any */
    int count;
    KnRatePoint points[KN_RATE_POINTS]; /* by rising size */
} KnRate;

typedef struct KnLink {
    double latency;   /* seconds of one message */
    double bandwidth; /* bytes a second that one rank sends while it receives as many */
} KnLink;

typedef struct KnDevice {
    char name[64];
    char backend[8];         /* whose form of the graph: "cpu" (packed weights, workspaces), "gpu" (none) */
    double memory, reserved; /* bytes; reserved is what libraries and contexts take */
    double overhead;         /* seconds that any kernel takes */
    double launch;           /* least seconds from kernel to kernel, as where the host queues each; else 0 */
    double latency;          /* seconds from asking memory to having it, where much is asked for */
    int own_attention;       /* `attention: own`: the backend's kernels, whose curves are called own_attention... */
    double limit[KN_DTYPE_COUNT]; /* FLOP a second of the best product, that kernels' shares refer to; 0: the peak */
    double memory_limit;          /* the same for bytes a second; 0: unknown */
    double peak[KN_DTYPE_COUNT];  /* FLOP a second that shares of peak refer to; 0: unknown */
    double overlap;               /* share of an exchange that costs the computation beside it nothing */
    int64_t ranks_per_node;
    KnLink inside, between; /* of ranks of one node; of different nodes */
    KnRate *rates;
    int rate_count, rate_capacity;
    KnStringList notes; /* where the figures come from: printed with every plan */
} KnDevice;

/* `name` is a built-in device or the path of a file. KN_EINPUT, KN_EIO, KN_EFORMAT with file, line and key. */
int kn_device_load(KnDevice *device, const char *name);
void kn_device_clear(KnDevice *device);
const char *kn_device_names(void); /* "h200, h100, a100" */

/* Adds a curve without points yet; valid until the next call. */
KnRate *kn_device_add_rate(KnDevice *device, const char *kind, int dtype, int64_t width);

/* The document that kn_device_load reads; free() it. */
char *kn_device_to_yaml(const KnDevice *device);

/* FLOP or bytes a second by the curves of `kind`, between the nearest widths and sizes; 0 where there is no curve. */
double kn_device_rate(const KnDevice *device, const char *kind, KnDtype dtype, int64_t width, double size);

typedef enum KnTimeKind {
    KN_TIME_MATMUL,
    KN_TIME_ATTENTION,
    KN_TIME_MEMORY, /* everything else that a rank computes */
    KN_TIME_KINDS
} KnTimeKind;

/* What a node is to a device: the kind, width and work that its time is looked up by. */
typedef struct KnNodeWork {
    const char *kind, *finer; /* finer: the curve that counts before, or NULL */
    KnTimeKind time;          /* also the class, whose rate counts where there is none of the kind */
    KnDtype dtype;
    int64_t width;
    double work;  /* FLOP or bytes; 0: nothing is done, as for a view */
    double bytes; /* read and written */
    double size;  /* where on the curve */
} KnNodeWork;
KnNodeWork kn_node_work(const KnNode *node);
double kn_device_seconds(const KnDevice *device, const KnNodeWork *work);

/* Of `kernel`, which a node of this first operand's dtype and columns runs by. */
double kn_device_kernel_seconds(const KnDevice *device, const KnKernelWork *kernel, KnDtype dtype, int64_t width);
/* Of moving so many bytes, at the rate of the class `memory`; 0 where there is none. */
double kn_device_memory_seconds(const KnDevice *device, double bytes);

#endif
