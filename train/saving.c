/* Saving during training. */
#include "train/saving.h"

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "dist/comm.h"
#include "dist/signals.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

enum { MOST_ROLLBACKS = 3 }; /* in a row to one checkpoint */

struct KnSaving {
    const KnConfig *config;
    KnComm *comm;
    KnMetrics *metrics;
    KnCheckpointSaver *saver;
    int64_t rolled_to; /* the step of the last rollback's checkpoint, and how often in a row */
    int rollbacks;
    pthread_t drawing; /* the thread that draws the loss curve, where is_drawing */
    int is_drawing;
};

int kn_saving_create(KnSaving **saving, const KnConfig *config, KnComm *comm, KnMetrics *metrics,
                     const KnTrainState *state)
{
    *saving = kn_alloc(sizeof **saving);
    **saving = (KnSaving){.config = config, .comm = comm, .metrics = metrics, .rolled_to = -1};
    KN_TRY(kn_checkpoint_saver_create(&(*saving)->saver, comm));
    int beside = config->train.checkpoint_every > 0; /* the last one is waited for, and needs no copy */
    return beside ? kn_train_state_reserve(state, config, (*saving)->saver) : KN_OK;
}

static void *draw(void *argument)
{
    const KnSaving *saving = argument;
    if (kn_metrics_draw(saving->config->run_dir) < 0)
        kn_warn("the loss curve is not drawn: %s", kn_error_message());
    return NULL;
}

static void wait_for_curve(KnSaving *saving)
{
    if (saving->is_drawing)
        pthread_join(saving->drawing, NULL);
    saving->is_drawing = 0;
}

/* Beside training, too: a long run has much to read for it. */
static void draw_curve(KnSaving *saving)
{
    sigset_t all, before;
    wait_for_curve(saving);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    saving->is_drawing = pthread_create(&saving->drawing, NULL, draw, saving) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void kn_saving_destroy(KnSaving *saving)
{
    if (!saving)
        return;
    wait_for_curve(saving);
    kn_checkpoint_saver_destroy(saving->saver);
    free(saving);
}

/* Is the run able to go on although a checkpoint failed with this code? */
static int is_bearable(int code)
{
    return code == KN_EIO || code == KN_EMEMORY || code == KN_EFORMAT;
}

static void tell_saved(KnSaving *saving, const KnCheckpointReport *r)
{
    kn_log("step %lld: checkpoint of %.1f MiB saved in %.2f s; training was held up for %.3f s, of them %.3f s by the "
           "copy",
           (long long)r->step, (double)r->bytes / 1048576.0, r->seconds, r->held_seconds, r->copied_seconds);
    if (saving->metrics) {
        kn_metrics_checkpoint(saving->metrics, r);
        draw_curve(saving);
    }
}

/* What begin, poll or finish came to. */
static int judge(KnSaving *saving, int code, const KnCheckpointReport *report, int must)
{
    if (code == KN_OK && report->done)
        tell_saved(saving, report);
    if (code < 0 && must)
        return kn_fail_prefix(code, "the checkpoint of step %lld could not be saved, former ones stand",
                              (long long)report->step);
    if (code < 0 && !is_bearable(code))
        return code;
    if (code < 0 && saving->comm->rank == 0)
        kn_warn("step %lld: the checkpoint could not be saved, training goes on and former ones stand: %s",
                (long long)report->step, kn_error_message());
    return KN_OK;
}

int kn_saving_finish(KnSaving *saving)
{
    KnCheckpointReport report;
    int code = kn_checkpoint_finish(saving->saver, &report);
    return judge(saving, code, &report, 0);
}

int kn_saving_agree(KnSaving *saving, int *stop)
{
    enum { STOP = 1, WRITING = 2 };
    KnCheckpointReport report;
    unsigned char mine = kn_stop_requested() ? STOP : 0, any;
    if (kn_checkpoint_is_writing(saving->saver))
        mine |= WRITING;
    KN_TRY(kn_comm_any(saving->comm, mine, &any));
    *stop = (any & STOP) != 0;
    if ((any & WRITING) || !kn_checkpoint_is_under_way(saving->saver))
        return KN_OK;
    int code = kn_checkpoint_poll(saving->saver, &report);
    return judge(saving, code, &report, 0);
}

int kn_saving_begin(KnSaving *saving, const KnTrainState *state, int wait)
{
    KnCheckpointReport report;
    KN_TRY(kn_saving_finish(saving));
    int code = kn_train_state_save(state, saving->config, saving->saver, wait, &report);
    return judge(saving, code, &report, wait);
}

int kn_saving_roll_back(KnSaving *saving, KnTrainState *state, const char *fault)
{
    int64_t bad = state->step, data_step = state->data_step;
    KN_TRY(kn_saving_finish(saving));
    KN_TRY(kn_train_state_reload(state, saving->config, saving->comm));
    state->data_step = data_step;
    saving->rollbacks = state->step == saving->rolled_to ? saving->rollbacks + 1 : 1;
    saving->rolled_to = state->step;
    if (saving->rollbacks > MOST_ROLLBACKS)
        return kn_fail(KN_EFORMAT,
                       "step %lld went wrong (%s) and so did %d attempts from the checkpoint of step %lld with other "
                       "data: lower optimizer.lr, or set what train.on_nonfinite and train.on_spike do",
                       (long long)bad, fault, MOST_ROLLBACKS, (long long)state->step);
    if (saving->comm->rank == 0)
        kn_warn("step %lld went wrong (%s): back to the checkpoint of step %lld, with the data behind the bad packs",
                (long long)bad, fault, (long long)state->step);
    return saving->metrics ? kn_metrics_rollback(saving->metrics, bad, state->step, fault) : KN_OK;
}
