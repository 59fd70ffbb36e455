/* Solvers against diffusers' paths on a known velocity field, and against the exact solution of a flow whose data is
 * Gaussian, where each must show its order. */
#include "core/base/error.h"
#include "core/base/safetensors.h"
#include "infer/solver.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SIZE = 32, MAX_EVALUATIONS = 64 };

static const char *const SOLVERS[] = {"euler", "heun", "unipc"};
static const char *const SPACINGS[] = {"wan", "linspace"};
static const int STEPS[] = {1, 2, 3, 4, 5, 10, 24};
static const double SHIFTS[] = {1, 3, 5};

#define FOR_EACH(index, table) for (size_t index = 0; index < sizeof(table) / sizeof *(table); index++)

static KnSolver *solver_of(const char *name, const char *spacing, int steps, double shift, size_t count)
{
    KnSolver *solver = NULL;
    KnSolverOptions options = {.solver = name, .spacing = spacing, .steps = steps, .shift = shift};
    assert_int_equal(kn_solver_create(&solver, &options, count), KN_OK);
    return solver;
}

/* The field of tests/oracle/solvers.py. */
static void oracle_velocity(float *velocity, const float *x, double sigma)
{
    for (int k = 0; k < SIZE; k++)
        velocity[k] = (float)(x[k] * cos(3 * sigma) - tanh(2 * x[k] + sigma * k / 8));
}

static void compare_case(const KnSafetensorsSet *fixture, const char *name, const char *spacing, int steps,
                         double shift)
{
    char key[96];
    float x[SIZE], velocity[SIZE], sigmas[MAX_EVALUATIONS], path[MAX_EVALUATIONS * SIZE];
    double schedule[MAX_EVALUATIONS], sigma;
    int evaluation = 0;
    KnSolver *solver = solver_of(name, spacing, steps, shift, SIZE);
    int evaluations = kn_solver_evaluations(solver);

    assert_int_equal(kn_safetensors_read_f32(fixture, "start", x, SIZE), KN_OK);
    snprintf(key, sizeof key, "%s.%s.s%g.n%d.sigmas", name, spacing, shift, steps);
    assert_int_equal(kn_safetensors_read_f32(fixture, key, sigmas, steps + 1), KN_OK);
    assert_int_equal(kn_sigma_schedule(schedule, spacing, steps, shift), KN_OK);
    for (int i = 0; i <= steps; i++)
        assert_true(fabs(schedule[i] - sigmas[i]) < 1e-7);

    snprintf(key, sizeof key, "%s.%s.s%g.n%d.path", name, spacing, shift, steps);
    assert_int_equal(kn_safetensors_read_f32(fixture, key, path, (int64_t)evaluations * SIZE), KN_OK);
    for (; kn_solver_next(solver, &sigma); evaluation++) {
        double difference = 0, norm = 0;
        const float *want = path + evaluation * SIZE;
        assert_int_equal(kn_solver_evaluations_done(solver), evaluation);
        oracle_velocity(velocity, x, sigma);
        kn_solver_step(solver, velocity, x);
        for (int k = 0; k < SIZE; k++) {
            difference += ((double)x[k] - want[k]) * ((double)x[k] - want[k]);
            norm += (double)want[k] * want[k];
        }
        if (!(sqrt(difference / norm) < 1e-6))
            fail_msg("%s evaluation %d: relative error %g", key, evaluation, sqrt(difference / norm));
    }
    assert_int_equal(evaluation, evaluations);
    kn_solver_destroy(solver);
}

static void every_path_equals_that_of_diffusers(void **state)
{
    KnSafetensorsSet *fixture = NULL;
    (void)state;
    assert_int_equal(kn_safetensors_open(&fixture, KN_TEST_FIXTURES "/solvers.safetensors"), KN_OK);
    FOR_EACH(solver, SOLVERS)
    FOR_EACH(spacing, SPACINGS)
    FOR_EACH(shift, SHIFTS)
    FOR_EACH(steps, STEPS)
    compare_case(fixture, SOLVERS[solver], SPACINGS[spacing], STEPS[steps], SHIFTS[shift]);
    kn_safetensors_close(fixture);
}

/* Data distributed as N(MEAN, SPREAD^2): x_sigma has variance (1 - sigma)^2 SPREAD^2 + sigma^2 about (1 - sigma) MEAN.
 * The flow keeps a value's distance from the mean in units of the deviation, and the velocity is the difference of the
 * conditional means of noise and data. */
static const double MEAN = 0.7, SPREAD = 0.4;

static double variance_at(double sigma)
{
    return (1 - sigma) * (1 - sigma) * SPREAD * SPREAD + sigma * sigma;
}

static double gaussian_velocity(double x, double sigma)
{
    double deviation = (x - (1 - sigma) * MEAN) / variance_at(sigma);
    double data = MEAN + (1 - sigma) * SPREAD * SPREAD * deviation, noise = sigma * deviation;
    return noise - data;
}

static double gaussian_error(const char *name, int steps)
{
    KnSolver *solver = solver_of(name, "wan", steps, 1, 1);
    double first, sigma;
    float x = 1.3f, velocity;
    kn_solver_next(solver, &first);
    double want = MEAN + SPREAD / sqrt(variance_at(first)) * (x - (1 - first) * MEAN);
    while (kn_solver_next(solver, &sigma)) {
        velocity = (float)gaussian_velocity(x, sigma);
        kn_solver_step(solver, &velocity, &x);
    }
    kn_solver_destroy(solver);
    return fabs(x - want);
}

static void each_solver_converges_with_its_order(void **state)
{
    static const int ORDERS[] = {1, 2, 2};
    (void)state;
    FOR_EACH(i, SOLVERS)
    {
        double coarse = gaussian_error(SOLVERS[i], 40), middle = gaussian_error(SOLVERS[i], 80),
               fine = gaussian_error(SOLVERS[i], 160);
        double slope = log2(coarse / fine) / 2;
        print_message("%s: errors %.2e, %.2e, %.2e with 40, 80, 160 steps: order %.2f\n", SOLVERS[i], coarse, middle,
                      fine, slope);
        assert_true(middle < coarse && fine < middle);
        assert_true(fabs(slope - ORDERS[i]) < 0.15);
    }
}

static void where_the_velocity_is_zero_nothing_moves(void **state)
{
    (void)state;
    FOR_EACH(i, SOLVERS)
    {
        float x[2] = {0.75f, 0.75f}, velocity[2] = {0, 1};
        double sigma;
        KnSolver *solver = solver_of(SOLVERS[i], "wan", 10, 3, 2);
        while (kn_solver_next(solver, &sigma))
            kn_solver_step(solver, velocity, x);
        assert_true(fabs(x[0] - 0.75) < 1e-6);
        assert_true(x[1] < 0);
        kn_solver_destroy(solver);
    }
}

static void every_name_of_the_help_text_is_accepted(void **state)
{
    const char *const lists[] = {kn_solver_names(), kn_spacing_names()};
    (void)state;
    FOR_EACH(list, lists)
    {
        char names[64];
        snprintf(names, sizeof names, "%s", lists[list]);
        for (char *name = strtok(names, ", "); name; name = strtok(NULL, ", "))
            kn_solver_destroy(solver_of(list == 0 ? name : NULL, list == 1 ? name : NULL, 4, 0, 3));
    }
}

static void impossible_options_are_refused_with_a_sentence(void **state)
{
    static const struct {
        KnSolverOptions options;
        const char *expected;
    } cases[] = {
        {{.solver = "euler2", .steps = 4}, "unknown solver 'euler2': choose one of euler, heun, unipc"},
        {{.spacing = "cosine", .steps = 4}, "unknown sigma spacing 'cosine': choose one of wan, linspace"},
        {{.steps = 0}, "0 sampling steps"},
        {{.steps = -3}, "-3 sampling steps"},
        {{.steps = INT32_MAX}, "2147483647 sampling steps"},
        {{.steps = 4, .shift = -1}, "shift of -1"},
        {{.steps = 4, .shift = NAN}, "shift of nan"},
        {{.steps = 4, .shift = INFINITY}, "shift of inf"},
    };
    (void)state;
    FOR_EACH(i, cases)
    {
        KnSolver *solver = (KnSolver *)&state;
        assert_int_equal(kn_solver_create(&solver, &cases[i].options, 8), KN_EINPUT);
        assert_null(solver);
        if (!strstr(kn_error_message(), cases[i].expected))
            fail_msg("'%s' lacks '%s'", kn_error_message(), cases[i].expected);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_path_equals_that_of_diffusers),
        cmocka_unit_test(each_solver_converges_with_its_order),
        cmocka_unit_test(where_the_velocity_is_zero_nothing_moves),
        cmocka_unit_test(every_name_of_the_help_text_is_accepted),
        cmocka_unit_test(impossible_options_are_refused_with_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
