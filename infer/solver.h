/* Solvers: from noise to a sample along the flow's ordinary differential equation dx/dsigma = v(x, sigma).
 *
 * The model is not called from here. The solver says at which sigma it wants the velocity, the caller evaluates the
 * model there and hands the velocity back, so that solvers with several evaluations a step (Heun) and with memory
 * (UniPC) look the same from outside:
 *
 *     KnSolver *solver = NULL;
 *     double sigma;
 *     KN_TRY(kn_solver_create(&solver, &(KnSolverOptions){.solver = "unipc", .steps = 50, .shift = 3}, count));
 *     while (kn_solver_next(solver, &sigma)) {
 *         velocity_of_the_model(velocity, x, 1000 * sigma);
 *         kn_solver_step(solver, velocity, x);
 *     }
 *     kn_solver_destroy(solver);
 *
 * x and velocity are arrays of `count` float32 in any layout (every operation is elementwise); velocity is eps - x0.
 * Elements that are given, not denoised, belong to the caller: write them into x again after every step.
 * Leans on core/base only; called by the sampler. Mathematics: flow matching as in Wan 2.1; UniPC is Zhao et al. 2023
 * (arXiv 2302.04867), order 2, B2(h) = e^h - 1, data prediction, first order in the last step. */
#ifndef KN_INFER_SOLVER_H
#define KN_INFER_SOLVER_H

#include <stddef.h>

typedef struct {
    const char *solver;  /* a name of kn_solver_names: "euler", "heun", "unipc"; NULL is "unipc" */
    const char *spacing; /* a name of kn_spacing_names: "wan", "linspace"; NULL is "wan" */
    int steps;           /* at least 1 */
    double shift;        /* greater than 0; 0 is taken as 1, no shift */
} KnSolverOptions;

typedef struct KnSolver KnSolver;

/* Makes a solver for arrays of `count` values. KN_EINPUT names the option at fault, KN_EMEMORY what was needed. */
int kn_solver_create(KnSolver **solver, const KnSolverOptions *options, size_t count);
void kn_solver_destroy(KnSolver *solver); /* NULL is fine */

/* Sets the sigma, in (0, 1], at which the velocity of the present x is wanted; returns 0 when x is the result. */
int kn_solver_next(const KnSolver *solver, double *sigma);

/* Takes the velocity of x at the sigma that kn_solver_next named and moves x to where the next one is wanted. */
void kn_solver_step(KnSolver *solver, const float *velocity, float *x);

/* For progress: how many evaluations are made in all, and how many have been. */
int kn_solver_evaluations(const KnSolver *solver);
int kn_solver_evaluations_done(const KnSolver *solver);

/* The noise levels of a run: sigmas[0 .. steps], decreasing, the last one 0. "wan" spaces sigma' evenly from 0.999 to
 * 0 and "linspace" from 1 to 0.001 (without that last one), then sigma = shift sigma' / (1 + (shift - 1) sigma').
 * KN_EINPUT for unknown names and impossible numbers. */
int kn_sigma_schedule(double *sigmas, const char *spacing, int steps, double shift);

/* "euler, heun, unipc": for help texts and messages. Constant strings. */
const char *kn_solver_names(void);
const char *kn_spacing_names(void);

#endif
