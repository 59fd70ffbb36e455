/* What the files of the MPI communicator share; nobody else includes it.
 *
 *     comm_mpi.c           the table: the program's side, which queues calls and waits for them
 *     comm_mpi_engine.c    the thread that makes every MPI call, from MPI_Init to MPI_Finalize
 *     comm_mpi_header.c    what ranks tell each other before a call moves anything
 *     comm_mpi_sum.c       all-reduce and reduce-scatter
 *     comm_mpi_bytes.c     all-gather, all-to-all, send and receive, broadcast
 *     comm_mpi_watch.c     the watchdog: who is late, and where it is instead
 *     comm_mpi_end.c       messages beside all calls, the last words, the end of the job
 *
 * Every call is a small state machine: first its headers meet, then a "move" starts messages and is told of each that
 * completes, until none is left. Calls of one communicator take turns; the first of each communicator that has any is
 * under way, side by side with those of others.
 *
 * All messages go over MPI_COMM_WORLD. A rank numbers the communicators it is a member of and tells its number to the
 * others; the number of the receiver is part of every tag, so that groups never mix. MPI's own communicators are made
 * by blocking calls, in which a rank that has frozen would hold up the thread that must say so. */
#ifndef KN_DIST_COMM_MPI_H
#define KN_DIST_COMM_MPI_H

#include "dist/comm.h"

#include <mpi.h>
#include <pthread.h>
#include <stdint.h>

enum {
    KN_MPI_SMALL_BYTES = 64,
    KN_MPI_NAME_BYTES = 48,
    KN_MPI_HOST_BYTES = 64,
    KN_MPI_SENTENCE_BYTES = 1536,
};

/* ---- calls ---- */

typedef enum KnMpiKind {
    KN_MPI_BARRIER,
    KN_MPI_SPLIT,
    KN_MPI_ALL_REDUCE,
    KN_MPI_REDUCE_SCATTER,
    KN_MPI_ALL_GATHER,
    KN_MPI_ALL_TO_ALL,
    KN_MPI_SEND_RECEIVE,
    KN_MPI_BROADCAST,
} KnMpiKind;

/* What a rank tells those it meets in a call. A barrier and a small all-gather need nothing more. */
typedef struct KnMpiHeader {
    int64_t number;       /* among the calls of its communicator; of a send and receive: among those of the rank */
    int64_t bytes;        /* of all ranks together; of an all-to-all and a send: what this rank sends */
    int64_t pair_bytes;   /* from this rank to the one that gets the header, where ranks get different amounts */
    uint64_t parts;       /* digest of the offsets that all ranks must have in common */
    int32_t kind, detail; /* detail: dtype or root */
    char name[KN_MPI_NAME_BYTES];
    unsigned char small[KN_MPI_SMALL_BYTES];
} KnMpiHeader;

typedef struct KnMpiEngine KnMpiEngine;
typedef struct KnMpiCall KnMpiCall;

/* How the bytes of one kind of call travel. `start` begins with the first messages, `completed` learns of one and may
 * put the next in its place; the call is complete when no message is left. */
typedef struct KnMpiMove {
    int (*start)(KnMpiCall *call);
    int (*completed)(KnMpiCall *call, int request);
} KnMpiMove;
extern const KnMpiMove kn_mpi_sum_move, kn_mpi_gather_move, kn_mpi_all_to_all_move, kn_mpi_pair_move,
    kn_mpi_broadcast_move;

typedef struct KnMpiComm {
    KnComm base;
    KnMpiEngine *engine;
    char name[KN_MPI_NAME_BYTES];
    int *members;  /* [ranks]: rank in the world */
    int *numbers;  /* [ranks]: how each member numbers this communicator */
    int announces; /* its calls meet and move nothing (kn_comm_announcer) */

    int64_t next_ticket, next_number, completed; /* under the engine's mutex */

    /* The thread's own. */
    struct KnMpiComm *next_active;
    KnMpiCall *calls, **calls_end;
    void *scratch;
    size_t scratch_bytes;
} KnMpiComm;

struct KnMpiCall {
    KnMpiCall *next;
    KnMpiComm *comm;
    KnCommTicket ticket;
    KnMpiHeader header;
    const void *input;
    void *output;
    int64_t *in, *out; /* [ranks + 1] offsets, copies: of the input, of the output */
    int to, from;      /* of a send and receive */

    /* The thread's own. */
    int moving;                 /* the headers have met */
    KnMpiHeader *ours, *theirs; /* [ranks] */
    MPI_Request *requests;
    int *peers; /* [request_count]: whom each request is with */
    int request_count;
    double since, progress; /* its turn came; the last message of the move arrived or left */
    double warned;
    void *state; /* of the move */
};

/* ---- the engine ---- */

/* Tags: the receiver's number of the communicator, and one of these. Two ranks exchange messages of one kind in the
 * same order, so that consecutive calls need no other tags. Number 0 is for messages beside all calls. */
enum {
    KN_MPI_TAG_HEADER = 0,
    KN_MPI_TAG_BYTES = 1,
    KN_MPI_LANES = 4,
    KN_MPI_TAG_PART = 4, /* + lane */
    KN_MPI_TAG_SUM = 8,  /* + lane */
    KN_MPI_TAG_KINDS = 16,
};

/* A message beside all calls. */
typedef enum KnMpiTopic { KN_MPI_LAST_WORDS, KN_MPI_QUESTION, KN_MPI_ANSWER } KnMpiTopic;
typedef struct KnMpiNote {
    int32_t topic;
    int32_t waits;            /* answer: its program stands in a wait */
    double unchanged_seconds; /* answer: how long its activity has not advanced */
    char text[KN_MPI_SENTENCE_BYTES];
} KnMpiNote;

typedef struct KnMpiOutgoing {
    struct KnMpiOutgoing *next;
    MPI_Request request;
    KnMpiNote note;
} KnMpiOutgoing;

/* What this rank knows of another that it has asked. */
typedef struct KnMpiWatched {
    double asked, answered; /* times; asked is 0 when no answer is due, answered before the first */
    KnMpiNote answer;
} KnMpiWatched;

struct KnMpiEngine {
    pthread_t thread;
    KnMpiComm *world;
    char (*hosts)[KN_MPI_HOST_BYTES]; /* [ranks of the world] */

    pthread_mutex_t mutex; /* guards what follows, up to the thread's own part */
    pthread_cond_t work, done;
    KnMpiCall *queue, **queue_end;
    int next_comm_number, comm_numbers;
    int started, closing, giving_up;
    int code; /* after a failure: of every call */
    char sentence[KN_MPI_SENTENCE_BYTES], last_words[KN_MPI_SENTENCE_BYTES];
    double limit;             /* of the watchdog, seconds; 0: off */
    const KnMpiComm *waiting; /* the program stands in a wait for it, since: */
    double waiting_since, waited;
    const KnMpiComm *asked; /* whose ranks may have stopped (kn_comm_ask), when last said so */
    double asked_at;
    int silent; /* of the world, one of them that does not answer, + 1; or 0 */
    char last_started[160], last_completed[160];

    /* The thread's own. */
    KnMpiComm *active; /* those with calls */
    KnMpiNote heard;
    MPI_Request listening;
    KnMpiOutgoing *outgoing;
    double give_up_deadline;
    KnMpiWatched *watched; /* [ranks of the world] */
    double next_watch, last_watch, watch_limit;
    int64_t activity_count;
    double activity_changed;
};

double kn_mpi_now(void);
void *kn_mpi_run_thread(void *engine);

/* ---- for the moves: everything below runs on the thread ---- */

/* Room for the requests of the call's present stage, none of them started. */
void kn_mpi_requests(KnMpiCall *call, int count);
/* Starts a message to or from a member, in the place `request`. At most 2^31 - 1 bytes. */
int kn_mpi_send(KnMpiCall *call, int request, const void *bytes, int64_t count, int rank, int tag);
int kn_mpi_receive(KnMpiCall *call, int request, void *bytes, int64_t count, int rank, int tag);
/* The result of an MPI function as a code with a sentence; `what` names the call. */
int kn_mpi_check(int result, const char *what);
/* Memory of the communicator for at least so many bytes, the same from call to call. */
int kn_mpi_scratch(KnMpiComm *comm, size_t bytes, void **scratch);

/* ---- headers ---- */

int kn_mpi_header_start(KnMpiCall *call);
/* All headers are here: 0, or KN_EPEER with the sentence that names both calls. */
int kn_mpi_header_compare(const KnMpiCall *call);
const KnMpiMove *kn_mpi_move(const KnMpiCall *call); /* NULL: the headers are all */
uint64_t kn_mpi_digest(const int64_t *offsets, int count);
/* "call 4 of ring, send_receive 'keys' of 80 bytes". */
void kn_mpi_describe_call(const KnMpiComm *comm, const KnMpiHeader *header, char *text, size_t size);

/* ---- beside the calls ---- */

int kn_mpi_listen(KnMpiEngine *engine);
void kn_mpi_tell(KnMpiEngine *engine, int world_rank, const KnMpiNote *note);
/* Hears what came, sends the own last words where the program gives up, and ends the job where that is this rank's. */
int kn_mpi_attend(KnMpiEngine *engine, int giving_up);
void kn_mpi_stop_listening(KnMpiEngine *engine);
/* start(engine), which calls MPI_Init, and the end of this process where other ranks do not come to it. */
int kn_mpi_start(KnMpiEngine *engine, int (*start)(KnMpiEngine *engine));
/* MPI_Finalize, and the end of this process where other ranks do not come to it. */
void kn_mpi_finalize(void);

void kn_mpi_watch(KnMpiEngine *engine);
void kn_mpi_watch_heard(KnMpiEngine *engine, int world_rank, const KnMpiNote *note);
/* Rank 0 of the world has left a question unanswered. */
int kn_mpi_watch_first_is_silent(const KnMpiEngine *engine);

#endif
