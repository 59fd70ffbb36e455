/* The watchdog: which ranks are late for a call, where they are instead, and when to stop waiting for them.
 *
 * A rank whose call has waited for half the limit asks the late ranks, again and again. Their threads answer where
 * their program is and for how long its activity (core/base/activity.h) has stood still. At the limit
 *   - a rank that does not answer, or that stands still for as long, ends the job;
 *   - one that goes on is named in a warning, once a limit, and waited for.
 * A program that itself waits for others answers for how long those stand still, so that a chain of waiting ranks goes
 * on as long as its end does, and the rank next to the culprit names it first; ranks that wait for each other in a
 * circle all stand still. */
#include "core/base/activity.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/base/text.h"
#include "dist/comm_mpi.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WATCH_SECONDS 0.05
#define ABSENCE_SECONDS 1.0 /* the thread never naps so long */

/* Shares of the limit. */
#define ASK_AFTER 0.5      /* a call has waited */
#define ASK_AGAIN 0.0625   /* after an answer */
#define SILENT_AFTER 0.375 /* a question */
#define STANDS_STILL 0.9   /* less than the limit by the age of an answer */
#define WAITING_STILL 1.25 /* of a program that waits itself: the rank next to the culprit comes first */

enum { NAMED_RANKS = 4 };

/* ---- who is late ---- */

/* While headers meet, from when the call's turn came; then from the last message that arrived or left. */
static double seconds_waited(const KnMpiCall *call, double now)
{
    return now - (call->moving ? call->progress : call->since);
}

/* Ranks of the world with whom a message is not complete; `late` has room for all members. */
static int find_late(const KnMpiCall *call, int *late)
{
    const KnMpiComm *comm = call->comm;
    int count = 0;
    for (int rank = 0; rank < comm->base.ranks; rank++) {
        int pending = 0;
        for (int i = 0; i < call->request_count && !pending; i++)
            pending = call->requests[i] != MPI_REQUEST_NULL && call->peers[i] == rank;
        if (pending)
            late[count++] = comm->members[rank];
    }
    return count;
}

static int is_silent(const KnMpiWatched *watched, double limit, double now)
{
    return watched->asked > 0 && now - watched->asked >= SILENT_AFTER * limit;
}

int kn_mpi_watch_first_is_silent(const KnMpiEngine *engine)
{
    return is_silent(&engine->watched[0], engine->watch_limit, kn_mpi_now());
}

static int is_given_up(const KnMpiWatched *watched, double limit, double now)
{
    if (watched->asked > 0 || watched->answered == 0)
        return is_silent(watched, limit, now);
    return watched->answer.unchanged_seconds >= limit * (watched->answer.waits ? WAITING_STILL : STANDS_STILL);
}

/* ---- questions and answers ---- */

static void ask(KnMpiEngine *engine, int world_rank, double limit, double now)
{
    static const KnMpiNote question = {.topic = KN_MPI_QUESTION};
    KnMpiWatched *watched = &engine->watched[world_rank];
    if (watched->asked > 0 || (watched->answered > 0 && now - watched->answered < ASK_AGAIN * limit))
        return;
    watched->asked = now;
    kn_mpi_tell(engine, world_rank, &question);
}

/* The call that the program stands in a wait for, or NULL. A call that is only announced (kn_comm_announcer) holds up a
 * device, and the program in time: nobody sees when. */
static const KnMpiCall *call_waited_for(KnMpiEngine *engine)
{
    pthread_mutex_lock(&engine->mutex);
    const KnMpiComm *waiting = engine->waiting;
    pthread_mutex_unlock(&engine->mutex);
    for (const KnMpiComm *comm = engine->active; comm; comm = comm->next_active)
        if (comm == waiting || (!waiting && comm->announces))
            return comm->calls;
    return NULL;
}

/* How long those stand still that a call waits for. */
static double seconds_of_late(const KnMpiEngine *engine, const KnMpiCall *call, const int *late, int count, double now)
{
    double least = seconds_waited(call, now);
    for (int i = 0; i < count; i++) {
        const KnMpiWatched *watched = &engine->watched[late[i]];
        if (watched->asked == 0 && watched->answered > call->since)
            least = fmin(least, watched->answer.unchanged_seconds + now - watched->answered);
    }
    return least;
}

static void describe_waiting(KnMpiEngine *engine, const KnMpiCall *call, KnMpiNote *note, double now)
{
    int *late = kn_alloc((size_t)call->comm->base.ranks * sizeof *late), count = find_late(call, late);
    char text[160], whom[32] = "";
    kn_mpi_describe_call(call->comm, &call->header, text, sizeof text);
    if (count > 0)
        snprintf(whom, sizeof whom, " for rank %d%s", late[0], count > 1 ? " and others" : "");
    snprintf(note->text, sizeof note->text, "waits itself%s in %s", whom, text);
    note->waits = 1;
    note->unchanged_seconds = seconds_of_late(engine, call, late, count, now);
    free(late);
}

static void describe_computing(KnMpiEngine *engine, KnMpiNote *note, double now)
{
    char activity[256];
    kn_activity_describe(activity, sizeof activity);
    note->unchanged_seconds = now - engine->activity_changed;
    pthread_mutex_lock(&engine->mutex);
    const char *started = engine->last_started, *completed = engine->last_completed;
    int under_way = strcmp(started, completed) != 0;
    snprintf(note->text, sizeof note->text, "is %s%s for %.0f s, after %s%s%s%s", activity[0] ? "at " : "elsewhere",
             activity, note->unchanged_seconds, completed[0] ? completed : "no call", under_way ? " and with " : "",
             under_way ? started : "", under_way ? " under way" : "");
    pthread_mutex_unlock(&engine->mutex);
}

static void answer(KnMpiEngine *engine, int world_rank, double now)
{
    KnMpiNote note = {.topic = KN_MPI_ANSWER};
    const KnMpiCall *call = call_waited_for(engine);
    if (call)
        describe_waiting(engine, call, &note, now);
    else
        describe_computing(engine, &note, now);
    kn_mpi_tell(engine, world_rank, &note);
}

void kn_mpi_watch_heard(KnMpiEngine *engine, int world_rank, const KnMpiNote *note)
{
    KnMpiWatched *watched = &engine->watched[world_rank];
    double now = kn_mpi_now();
    if (note->topic == KN_MPI_QUESTION) {
        answer(engine, world_rank, now);
        return;
    }
    watched->answer = *note;
    watched->answered = now;
    watched->asked = 0;
}

/* ---- verdicts ---- */

static void name_late(const KnMpiEngine *engine, KnText *text, int world_rank, double limit, double now)
{
    const KnMpiWatched *watched = &engine->watched[world_rank];
    kn_text_appendf(text, "for rank %d on host %s, which ", world_rank, engine->hosts[world_rank]);
    if (is_silent(watched, limit, now))
        kn_text_appendf(text, "does not answer: its process is stopped or gone, or the link to its host is down");
    else
        kn_text_appendf(text, "%s", watched->answered > 0 ? watched->answer.text : "has not answered yet");
}

static int waits_itself(const KnMpiWatched *watched, double limit, double now)
{
    return watched->answer.waits && !is_silent(watched, limit, now);
}

/* Those late ranks that do not wait themselves. */
static int find_culprits(const KnMpiEngine *engine, const int *late, int count, int *culprits, double limit, double now)
{
    int found = 0;
    for (int i = 0; i < count; i++)
        if (!waits_itself(&engine->watched[late[i]], limit, now))
            culprits[found++] = late[i];
    return found;
}

static char *describe_late(const KnMpiEngine *engine, const KnMpiCall *call, const int *late, int count, double limit,
                           double now)
{
    char where[160];
    KnText text = {0};
    kn_mpi_describe_call(call->comm, &call->header, where, sizeof where);
    kn_text_appendf(&text, "rank %d has waited %.0f s in %s, ", engine->world->base.rank, seconds_waited(call, now),
                    where);
    for (int i = 0; i < count && i < NAMED_RANKS; i++) {
        kn_text_appendf(&text, "%s", i ? "; and " : "");
        name_late(engine, &text, late[i], limit, now);
    }
    if (count > NAMED_RANKS)
        kn_text_appendf(&text, "; and for %d more", count - NAMED_RANKS);
    return kn_text_take(&text);
}

static void give_up(KnMpiEngine *engine, const char *sentence)
{
    signal(SIGTERM, SIG_DFL); /* as when the program gives up */
    pthread_mutex_lock(&engine->mutex);
    if (!engine->giving_up)
        snprintf(engine->last_words, sizeof engine->last_words,
                 "%s (start again with --resume; a larger run.watchdog_seconds waits longer)", sentence);
    engine->giving_up = 1;
    pthread_mutex_unlock(&engine->mutex);
}

/* The first of those that wait. */
static int is_speaker(const KnMpiEngine *engine, const KnMpiCall *call, const int *late, int count)
{
    const KnMpiComm *comm = call->comm;
    int first = 0;
    while (first < count && late[first] == comm->members[first])
        first++;
    return comm->members[first] == engine->world->base.rank;
}

/* Warnings about ranks that wait themselves are left to those next to the culprit; in a circle there is nobody else to
 * name at the end. */
static void judge(KnMpiEngine *engine, KnMpiCall *call, const int *late, int count, double limit, double now)
{
    int given_up = 0, *culprits = kn_alloc((size_t)count * sizeof *culprits);
    int found = find_culprits(engine, late, count, culprits, limit, now);
    for (int i = 0; i < count; i++)
        given_up |= is_given_up(&engine->watched[late[i]], limit, now);
    int warn = found && now - call->warned >= limit && is_speaker(engine, call, late, count);
    if (given_up || warn) {
        char *sentence = describe_late(engine, call, found ? culprits : late, found ? found : count, limit, now);
        if (given_up) {
            give_up(engine, sentence);
        } else {
            kn_warn("%s", sentence);
            call->warned = now;
        }
        free(sentence);
    }
    free(culprits);
}

static void watch_call(KnMpiEngine *engine, KnMpiCall *call, double limit, double now)
{
    double waited = seconds_waited(call, now);
    if (waited < ASK_AFTER * limit)
        return;
    int *late = kn_alloc((size_t)call->comm->base.ranks * sizeof *late), count = find_late(call, late);
    for (int i = 0; i < count; i++)
        ask(engine, late[i], limit, now);
    if (waited >= limit && count > 0)
        judge(engine, call, late, count, limit, now);
    free(late);
}

/* Time in which this process itself was stopped (Ctrl-Z, a debugger, a suspended machine) counts for nobody. */
static void forgive_own_absence(KnMpiEngine *engine, double now)
{
    double absent = engine->last_watch > 0 ? now - engine->last_watch : 0;
    engine->last_watch = now;
    if (absent < ABSENCE_SECONDS)
        return;
    engine->activity_changed += absent;
    for (KnMpiComm *comm = engine->active; comm; comm = comm->next_active) {
        comm->calls->since += absent;
        comm->calls->progress += absent;
    }
    for (int rank = 0; rank < engine->world->base.ranks; rank++)
        if (engine->watched[rank].asked > 0)
            engine->watched[rank].asked += absent;
}

/* Under the mutex. */
static void ask_members(KnMpiEngine *engine, double limit, double now)
{
    const KnMpiComm *comm = engine->asked;
    engine->silent = 0;
    if (!comm || now - engine->asked_at > ABSENCE_SECONDS)
        return;
    for (int rank = 0; rank < comm->base.ranks; rank++) {
        int member = comm->members[rank];
        if (rank == comm->base.rank)
            continue;
        ask(engine, member, limit, now);
        if (!engine->silent && is_silent(&engine->watched[member], limit, now))
            engine->silent = member + 1;
    }
}

int kn_comm_ask(KnComm *announcer, const char *what, double seconds)
{
    const KnMpiComm *comm = (const KnMpiComm *)announcer;
    KnMpiEngine *engine = comm->engine;
    pthread_mutex_lock(&engine->mutex);
    int silent = engine->asked == comm ? engine->silent - 1 : -1;
    engine->asked = comm;
    engine->asked_at = kn_mpi_now();
    pthread_mutex_unlock(&engine->mutex);
    if (silent < 0)
        return KN_OK;
    return kn_fail(KN_EPEER,
                   "rank %d has waited %.0f s in %s, for rank %d on host %s, which does not answer: its process is "
                   "stopped or gone, or the link to its host is down (start again with --resume; a larger "
                   "run.watchdog_seconds waits longer)",
                   engine->world->base.rank, seconds, what, silent, engine->hosts[silent]);
}

void kn_mpi_watch(KnMpiEngine *engine)
{
    double now = kn_mpi_now();
    if (now < engine->next_watch)
        return;
    engine->next_watch = now + WATCH_SECONDS;
    forgive_own_absence(engine, now);
    int64_t activity = kn_activity_count();
    if (activity != engine->activity_count)
        engine->activity_changed = now;
    engine->activity_count = activity;
    pthread_mutex_lock(&engine->mutex);
    double limit = engine->giving_up ? 0 : engine->limit;
    if (limit > 0)
        ask_members(engine, limit, now);
    pthread_mutex_unlock(&engine->mutex);
    if (limit <= 0)
        return;
    engine->watch_limit = limit;
    for (KnMpiComm *comm = engine->active; comm; comm = comm->next_active)
        watch_call(engine, comm->calls, limit, now);
}
