/* Messages beside all calls, and the end of the job.
 *
 * Every rank's thread always listens: to questions of ranks that wait for it (comm_mpi_watch.c), and rank 0 to last
 * words. A rank that gives up sends its sentence to rank 0, which prints the first that it hears and ends the job.
 * Where rank 0 does not do so in time, the rank ends by itself: the link between them may be cut. */
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/base/text.h"
#include "dist/comm_mpi.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define GRACE_SECONDS 20.0  /* for rank 0 to end the job; then the failing rank does it */
#define STAGGER_SECONDS 0.2 /* by rank, where rank 0 is known to be silent: the first one's end ends the others */
#define ABORT_SECONDS 5     /* for the launcher to end this process */
#define START_SECONDS 300
#define FINALIZE_SECONDS 60
#define FLUSH_SECONDS 0.02 /* the launcher drops what it has not read when it aborts */

static void pause_seconds(double seconds)
{
    struct timespec pause = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    nanosleep(&pause, NULL);
}

/* ---- deadlines for MPI calls that wait for others ---- */

typedef struct Deadline {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t met;
    int is_met;
    struct timespec until;
    const char *sentence; /* NULL: said already */
} Deadline;

/* Ends the process, unless the deadline is met before. */
static void *run_deadline(void *argument)
{
    Deadline *deadline = argument;
    int late = 0;
    pthread_mutex_lock(&deadline->mutex);
    while (!deadline->is_met && !late)
        late = pthread_cond_timedwait(&deadline->met, &deadline->mutex, &deadline->until) == ETIMEDOUT;
    int is_met = deadline->is_met;
    pthread_mutex_unlock(&deadline->mutex);
    if (is_met)
        return NULL;
    if (deadline->sentence)
        kn_log_error("%s", deadline->sentence);
    _exit(EXIT_FAILURE);
}

static int set_deadline(Deadline *deadline, int seconds, const char *sentence)
{
    *deadline = (Deadline){.sentence = sentence};
    pthread_mutex_init(&deadline->mutex, NULL);
    pthread_cond_init(&deadline->met, NULL);
    clock_gettime(CLOCK_REALTIME, &deadline->until);
    deadline->until.tv_sec += seconds;
    return pthread_create(&deadline->thread, NULL, run_deadline, deadline) == 0;
}

static void meet_deadline(Deadline *deadline)
{
    pthread_mutex_lock(&deadline->mutex);
    deadline->is_met = 1;
    pthread_cond_signal(&deadline->met);
    pthread_mutex_unlock(&deadline->mutex);
    pthread_join(deadline->thread, NULL);
}

/* Where ranks have not met yet none can ask another where it is. Large machines may need longer. */
static int start_seconds(void)
{
    const char *text = getenv("KINORA_START_SECONDS");
    int asked = text ? atoi(text) : 0;
    return asked > 0 ? asked : START_SECONDS;
}

int kn_mpi_start(KnMpiEngine *engine, int (*start)(KnMpiEngine *engine))
{
    const char *of_mpirun = getenv("OMPI_COMM_WORLD_RANK"), *rank = of_mpirun ? of_mpirun : getenv("PMIX_RANK");
    int limit = start_seconds();
    Deadline deadline;
    char *sentence =
        kn_format("rank %s has waited %d s for the other ranks to start: one of their processes is stopped "
                  "or gone, or its host is out of reach (a larger KINORA_START_SECONDS waits longer)",
                  rank ? rank : "?", limit);
    int set = set_deadline(&deadline, limit, sentence), code = start(engine);
    if (set)
        meet_deadline(&deadline);
    pthread_cond_destroy(&deadline.met);
    pthread_mutex_destroy(&deadline.mutex);
    free(sentence);
    return code;
}

void kn_mpi_finalize(void)
{
    Deadline deadline;
    int set = set_deadline(&deadline, FINALIZE_SECONDS,
                           "the ranks do not come to an end together: another rank's process is stopped or gone, or "
                           "the link to its host is down");
    MPI_Finalize();
    if (set)
        meet_deadline(&deadline);
    pthread_cond_destroy(&deadline.met);
    pthread_mutex_destroy(&deadline.mutex);
}

/* MPI_Abort waits for the launcher, which may be out of reach. */
_Noreturn static void end_job(const char *sentence)
{
    kn_log_error("%s", sentence);
    pause_seconds(FLUSH_SECONDS);
    static Deadline deadline;
    set_deadline(&deadline, ABORT_SECONDS, NULL);
    MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
    _exit(EXIT_FAILURE);
}

/* ---- messages ---- */

int kn_mpi_listen(KnMpiEngine *engine)
{
    return kn_mpi_check(MPI_Irecv(&engine->heard, sizeof engine->heard, MPI_BYTE, MPI_ANY_SOURCE, 0, MPI_COMM_WORLD,
                                  &engine->listening),
                        "listening to other ranks");
}

void kn_mpi_stop_listening(KnMpiEngine *engine)
{
    if (engine->listening == MPI_REQUEST_NULL)
        return;
    MPI_Cancel(&engine->listening);
    MPI_Wait(&engine->listening, MPI_STATUS_IGNORE);
}

/* A failure to send is as good as a message that is lost: whoever waits for it has a deadline. */
void kn_mpi_tell(KnMpiEngine *engine, int world_rank, const KnMpiNote *note)
{
    KnMpiOutgoing *outgoing = kn_alloc(sizeof *outgoing);
    outgoing->note = *note;
    outgoing->next = engine->outgoing;
    engine->outgoing = outgoing;
    MPI_Isend(&outgoing->note, sizeof outgoing->note, MPI_BYTE, world_rank, 0, MPI_COMM_WORLD, &outgoing->request);
}

static void release_sent(KnMpiEngine *engine)
{
    for (KnMpiOutgoing **place = &engine->outgoing; *place;) {
        KnMpiOutgoing *outgoing = *place;
        int sent = 0;
        MPI_Test(&outgoing->request, &sent, MPI_STATUS_IGNORE);
        if (sent) {
            *place = outgoing->next;
            free(outgoing);
        } else {
            place = &outgoing->next;
        }
    }
}

static int hear(KnMpiEngine *engine)
{
    int heard = 0;
    MPI_Status status;
    KN_TRY(kn_mpi_check(MPI_Test(&engine->listening, &heard, &status), "listening to other ranks"));
    if (!heard)
        return KN_OK;
    if (engine->heard.topic == KN_MPI_LAST_WORDS)
        end_job(engine->heard.text);
    kn_mpi_watch_heard(engine, status.MPI_SOURCE, &engine->heard);
    return kn_mpi_listen(engine);
}

/* ---- giving up ---- */

static double grace_seconds(const KnMpiEngine *engine)
{
    if (kn_mpi_watch_first_is_silent(engine))
        return STAGGER_SECONDS * engine->world->base.rank;
    return GRACE_SECONDS;
}

static void give_up(KnMpiEngine *engine)
{
    if (engine->world->base.rank == 0)
        end_job(engine->last_words);
    if (engine->give_up_deadline == 0) {
        KnMpiNote note = {.topic = KN_MPI_LAST_WORDS};
        snprintf(note.text, sizeof note.text, "%s", engine->last_words);
        kn_mpi_tell(engine, 0, &note);
        engine->give_up_deadline = kn_mpi_now() + grace_seconds(engine);
    }
    if (kn_mpi_now() > engine->give_up_deadline)
        end_job(engine->last_words);
}

int kn_mpi_attend(KnMpiEngine *engine, int giving_up)
{
    int code = hear(engine);
    release_sent(engine);
    if (giving_up)
        give_up(engine);
    return code;
}
