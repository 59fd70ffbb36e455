/* Fibers: stacks between which one thread of the host switches, in about ten nanoseconds.
 *
 * A thread's own stack is a Context as well, that it leaves by its first switch. AddressSanitizer is told of every
 * switch, since it must know the stack's bounds. ThreadSanitizer takes each fiber for a thread of its own, and is told
 * that a switch orders nothing: what two fibers do to one address without a barrier is then a race, whatever the order
 * they happened to run in. */
#ifndef KN_CUDA_EMULATOR_FIBER_H
#define KN_CUDA_EMULATOR_FIBER_H

#include <stddef.h>

#ifndef __has_feature /* gcc has macros in its place */
#define __has_feature(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define KN_EMULATED_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define KN_EMULATED_TSAN 1
#include <sanitizer/tsan_interface.h>
#define KN_IF_TSAN(code) code
#else
#define KN_IF_TSAN(code)
#endif
#if !defined(__x86_64__) && !defined(KN_EMULATED_UCONTEXT)
#define KN_EMULATED_UCONTEXT 1
#endif
#ifdef KN_EMULATED_UCONTEXT
#include <ucontext.h>
#endif
#ifdef KN_EMULATED_ASAN
#include <sanitizer/common_interface_defs.h>
#define KN_IF_ASAN(code) code
#else
#define KN_IF_ASAN(code)
#endif

/* The emulator's own accesses are no business of ThreadSanitizer's, which would see fibers share its state. */
#ifdef KN_EMULATED_TSAN
#define KN_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
#define KN_UNSEEN
#endif

namespace kn_emulated
{

struct Context {
    void *stack_pointer;
    const void *stack; /* its lowest byte */
    size_t stack_bytes;
    void *fake_stack; /* AddressSanitizer's */
    void *fiber;      /* ThreadSanitizer's */
#ifdef KN_EMULATED_UCONTEXT
    ucontext_t registers;
#endif
};

/* The calling thread of the host, as a context that can be left. */
void context_of_caller(Context &context);

/* A fiber that begins in `run`, which first calls fiber_begin and never returns. Below its stack lies a guard page. */
void fiber_create(Context &fiber, unsigned number, void (*run)());

KN_UNSEEN inline void fiber_begin()
{
    KN_IF_ASAN(__sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);)
}

#ifdef KN_EMULATED_UCONTEXT

inline void switch_stacks(Context &from, Context &to)
{
    swapcontext(&from.registers, &to.registers);
}

#else

extern "C" void kn_emulated_switch_stacks(void **from, void *to) __attribute__((visibility("hidden")));

inline void switch_stacks(Context &from, Context &to)
{
    kn_emulated_switch_stacks(&from.stack_pointer, to.stack_pointer);
}

#endif

/* Leaves `from`, where the caller stands; returns when another switch leads back to it. */
KN_UNSEEN inline void fiber_switch(Context &from, Context &to)
{
    KN_IF_ASAN(__sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);)
    KN_IF_TSAN(__tsan_switch_to_fiber(to.fiber, __tsan_switch_to_fiber_no_sync);)
    switch_stacks(from, to);
    KN_IF_ASAN(__sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);)
}

} // namespace kn_emulated

#endif
