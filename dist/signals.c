/* The flag behind dist/signals.h. */
#include "dist/signals.h"

#include <signal.h>
#include <stddef.h>
#include <string.h>

static const struct {
    int number, flags;
    const char *name;
} stop_signals[] = {
    {SIGTERM, SA_RESTART, "SIGTERM"},
    {SIGUSR1, SA_RESTART, "SIGUSR1"},
    {SIGINT, SA_RESTART | (int)SA_RESETHAND, "SIGINT"}, /* the impatient second Ctrl-C kills */
};

static volatile sig_atomic_t requested;

static void remember(int number)
{
    requested = number;
}

void kn_signals_install(void)
{
    for (size_t i = 0; i < sizeof stop_signals / sizeof *stop_signals; i++) {
        struct sigaction action = {.sa_handler = remember, .sa_flags = stop_signals[i].flags};
        sigemptyset(&action.sa_mask);
        sigaction(stop_signals[i].number, &action, NULL);
    }
}

int kn_stop_requested(void)
{
    return requested;
}

const char *kn_signal_name(int number)
{
    for (size_t i = 0; i < sizeof stop_signals / sizeof *stop_signals; i++)
        if (stop_signals[i].number == number)
            return stop_signals[i].name;
    return "a signal";
}
