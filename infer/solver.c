/* The table of solvers and of sigma spacings.
 *
 * Every update is a linear combination of a few arrays with coefficients that depend on the sigmas alone. They are
 * computed in float64 and combined in float64 element by element, so nothing depends on the number of threads, and a
 * long run loses no more than the rounding of x to float32 at each step. */
#include "infer/solver.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_HISTORY = 3, MAX_STEPS = 100000 };

typedef struct {
    const char *name;
    int history; /* arrays kept from one evaluation to the next */
    /* Evaluations in a step that does not end at sigma 0; the last step is always a single one. */
    int evaluations_per_step;
    void (*step)(KnSolver *solver, const float *velocity, float *x);
} SolverKind;

struct KnSolver {
    const SolverKind *kind;
    size_t count;
    int steps;
    int index; /* the step under way: from sigmas[index] to sigmas[index + 1] */
    int stage; /* the evaluation within the step */
    int done;  /* evaluations so far */
    double *sigmas;
    float *memory;
    float *history[MAX_HISTORY];
};

/* Euler: x(s') = x(s) + (s' - s) v. */
static void euler_step(KnSolver *solver, const float *velocity, float *x)
{
    double step = solver->sigmas[solver->index + 1] - solver->sigmas[solver->index];
    for (size_t i = 0; i < solver->count; i++)
        x[i] = (float)(x[i] + step * velocity[i]);
    solver->index++;
}

/* Heun: an Euler step, then the same step from the same place with the mean of the slopes at both ends. The last step,
 * to sigma 0, where the model was never trained, stays Euler's. */
static void heun_step(KnSolver *solver, const float *velocity, float *x)
{
    float *start = solver->history[0], *slope = solver->history[1];
    double step = solver->sigmas[solver->index + 1] - solver->sigmas[solver->index];
    if (solver->index == solver->steps - 1) {
        euler_step(solver, velocity, x);
    } else if (solver->stage == 0) {
        for (size_t i = 0; i < solver->count; i++) {
            start[i] = x[i];
            slope[i] = velocity[i];
            x[i] = (float)(x[i] + step * velocity[i]);
        }
        solver->stage = 1;
    } else {
        for (size_t i = 0; i < solver->count; i++)
            x[i] = (float)(start[i] + step * 0.5 * ((double)slope[i] + velocity[i]));
        solver->stage = 0;
        solver->index++;
    }
}

/* Half the logarithm of the signal-to-noise ratio, the time in which UniPC's exponential integrator is exact. */
static double log_snr(double sigma)
{
    return log1p(-sigma) - log(sigma);
}

/* What one step of length h in log_snr, from sigma_s to sigma_t, is made of:
 * x_t = keep x_s + gain (m_0 + residual), with m the predicted clean samples and residual their divided differences.
 * With B(h) = e^-h - 1 = h phi_1(-h) (the paper's B2 for data prediction), gain = -alpha_t B(h). */
typedef struct {
    double h, keep, gain;
} UnipcStep;

static UnipcStep unipc_step_between(double sigma_s, double sigma_t)
{
    UnipcStep step = {.keep = sigma_t / sigma_s};
    if (sigma_t > 0) {
        step.h = log_snr(sigma_t) - log_snr(sigma_s);
        step.gain = -(1 - sigma_t) * expm1(-step.h);
    } else {
        step.h = INFINITY;
        step.gain = 1;
    }
    return step;
}

/* The corrector's weights for the older difference and for the new one, order 2: the solution of
 *   [1 1; r 1] [old; fresh] = [b1; b2],  b1 = phi_2 / B, b2 = 2 phi_3 / B,
 * in the paper's phi_k(-h) recursion with phi_1 = B(h). */
static void unipc_corrector_weights(double h, double r, double *older, double *fresh)
{
    double base = expm1(-h);
    double phi = base / -h - 1;
    double b1 = phi / base;
    double b2 = 2 * (phi / -h - 0.5) / base;
    *older = (b1 - b2) / (1 - r);
    *fresh = b1 - *older;
}

/* UniPC: the velocity just evaluated gives the clean sample m_t = x - sigma v. It first corrects the x at which it was
 * evaluated (UniC, repeating the last step with m_t known), then predicts the next x (UniP). */
static void unipc_step(KnSolver *solver, const float *velocity, float *x)
{
    const double *sigmas = solver->sigmas;
    float *before = solver->history[0], *newer = solver->history[1], *older = solver->history[2];
    int i = solver->index;
    double sigma = sigmas[i];

    /* Corrector, from sigmas[i - 1] to sigmas[i]; its order is that of the predictor which made this x. */
    int corrector_order = i < 2 ? i : 2;
    UnipcStep last = {0};
    double last_ratio = 1, older_weight = 0, fresh_weight = 0.5;
    if (corrector_order > 0)
        last = unipc_step_between(sigmas[i - 1], sigma);
    if (corrector_order == 2) {
        last_ratio = (log_snr(sigmas[i - 2]) - log_snr(sigmas[i - 1])) / last.h;
        unipc_corrector_weights(last.h, last_ratio, &older_weight, &fresh_weight);
    }

    /* Predictor, from sigmas[i] to sigmas[i + 1]: order 2 but for the first step (no past) and the last (to 0). */
    int second_order = i > 0 && i < solver->steps - 1;
    UnipcStep next = unipc_step_between(sigma, sigmas[i + 1]);
    double half_inverse_ratio = second_order ? 0.5 / ((log_snr(sigmas[i - 1]) - log_snr(sigma)) / next.h) : 0;

    for (size_t k = 0; k < solver->count; k++) {
        double fresh = x[k] - sigma * velocity[k];
        double here = x[k];
        if (corrector_order > 0) {
            double residual = fresh_weight * (fresh - newer[k]);
            if (corrector_order == 2)
                residual += older_weight * ((double)older[k] - newer[k]) / last_ratio;
            here = last.keep * before[k] + last.gain * (newer[k] + residual);
        }
        double residual = second_order ? half_inverse_ratio * (newer[k] - fresh) : 0;
        older[k] = newer[k];
        newer[k] = (float)fresh;
        before[k] = (float)here;
        x[k] = (float)(next.keep * here + next.gain * (fresh + residual));
    }
    solver->index++;
}

static const SolverKind SOLVERS[] = {
    {"euler", 0, 1, euler_step},
    {"heun", 2, 2, heun_step},
    {"unipc", 3, 1, unipc_step},
};

/* Evenly spaced sigma before the shift: from `first` to `last` in `steps` intervals. A first sigma of 1 is lowered a
 * little, because log_snr(1) is infinite. */
typedef struct {
    const char *name;
    double first, last;
} Spacing;

static const Spacing SPACINGS[] = {
    {"wan", 0.999, 0.0},
    {"linspace", 1.0, 0.001},
};
static const double LARGEST_SIGMA = 1 - 1e-6;

enum { SOLVER_COUNT = sizeof SOLVERS / sizeof *SOLVERS, SPACING_COUNT = sizeof SPACINGS / sizeof *SPACINGS };

const char *kn_solver_names(void)
{
    return "euler, heun, unipc";
}

const char *kn_spacing_names(void)
{
    return "wan, linspace";
}

static int find_spacing(const Spacing **spacing, const char *name)
{
    for (int i = 0; i < SPACING_COUNT; i++)
        if (strcmp(SPACINGS[i].name, name) == 0) {
            *spacing = &SPACINGS[i];
            return KN_OK;
        }
    return kn_fail(KN_EINPUT, "unknown sigma spacing '%s': choose one of %s", name, kn_spacing_names());
}

static int find_solver(const SolverKind **kind, const char *name)
{
    for (int i = 0; i < SOLVER_COUNT; i++)
        if (strcmp(SOLVERS[i].name, name) == 0) {
            *kind = &SOLVERS[i];
            return KN_OK;
        }
    return kn_fail(KN_EINPUT, "unknown solver '%s': choose one of %s", name, kn_solver_names());
}

static int check_steps(int steps)
{
    if (steps < 1 || steps > MAX_STEPS)
        return kn_fail(KN_EINPUT, "%d sampling steps are impossible: give a number from 1 to %d", steps, MAX_STEPS);
    return KN_OK;
}

int kn_sigma_schedule(double *sigmas, const char *spacing_name, int steps, double shift)
{
    const Spacing *spacing = NULL;
    KN_TRY(find_spacing(&spacing, spacing_name ? spacing_name : SPACINGS[0].name));
    KN_TRY(check_steps(steps));
    if (shift == 0)
        shift = 1;
    if (!(shift > 0) || !isfinite(shift))
        return kn_fail(KN_EINPUT, "a sigma shift of %g is impossible: give a number greater than 0, such as 3", shift);
    for (int i = 0; i < steps; i++) {
        double sigma = spacing->first + (spacing->last - spacing->first) * i / steps;
        sigma = shift * sigma / (1 + (shift - 1) * sigma);
        sigmas[i] = sigma < LARGEST_SIGMA ? sigma : LARGEST_SIGMA;
    }
    sigmas[steps] = 0;
    return KN_OK;
}

int kn_solver_create(KnSolver **out, const KnSolverOptions *options, size_t count)
{
    KnSolver *solver = kn_alloc(sizeof *solver);
    void *memory = NULL;
    int code;
    *out = NULL;
    KN_TRY_GOTO(code, find_solver(&solver->kind, options->solver ? options->solver : "unipc"), failed);
    KN_TRY_GOTO(code, check_steps(options->steps), failed);
    solver->count = count;
    solver->steps = options->steps;
    solver->sigmas = kn_alloc(((size_t)solver->steps + 1) * sizeof *solver->sigmas);
    KN_TRY_GOTO(code, kn_sigma_schedule(solver->sigmas, options->spacing, options->steps, options->shift), failed);
    if (count > SIZE_MAX / (MAX_HISTORY * sizeof(float))) {
        code = kn_fail(KN_EINPUT, "a sample of %zu values is larger than memory can be", count);
        goto failed;
    }
    KN_TRY_GOTO(code, kn_alloc_large(&memory, (size_t)solver->kind->history * count * sizeof(float), "the solver"),
                failed);
    solver->memory = memory;
    for (int i = 0; i < solver->kind->history; i++)
        solver->history[i] = solver->memory + (size_t)i * count;
    *out = solver;
    return KN_OK;
failed:
    kn_solver_destroy(solver);
    return code;
}

void kn_solver_destroy(KnSolver *solver)
{
    if (!solver)
        return;
    kn_free_large(solver->memory);
    free(solver->sigmas);
    free(solver);
}

int kn_solver_next(const KnSolver *solver, double *sigma)
{
    if (solver->index >= solver->steps)
        return 0;
    *sigma = solver->sigmas[solver->index + solver->stage];
    return 1;
}

void kn_solver_step(KnSolver *solver, const float *velocity, float *x)
{
    KN_ASSERT(solver->index < solver->steps);
    solver->kind->step(solver, velocity, x);
    solver->done++;
}

int kn_solver_evaluations(const KnSolver *solver)
{
    return (solver->steps - 1) * solver->kind->evaluations_per_step + 1;
}

int kn_solver_evaluations_done(const KnSolver *solver)
{
    return solver->done;
}
