/* Fibers: the switch, their stacks, and what sanitizers are told. */
#include "core/cuda/emulator/fiber.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifdef KN_EMULATED_ASAN
#include <sanitizer/common_interface_defs.h>
#define KN_IF_ASAN(code) code
#else
#define KN_IF_ASAN(code)
#endif

namespace kn_emulated
{

static constexpr size_t GUARD_BYTES = 64 << 10, STACK_BYTES = 256 << 10;

/* Equal offsets in all stacks would share the same few sets of the cache. */
static constexpr size_t STAGGER_BYTES = 320, STAGGERED = 32;

#ifdef KN_EMULATED_UCONTEXT

static void switch_stacks(Context &from, Context &to)
{
    swapcontext(&from.registers, &to.registers);
}

static void prepare_stack(Context &fiber, char *top, void (*run)())
{
    getcontext(&fiber.registers);
    fiber.registers.uc_stack.ss_sp = (void *)fiber.stack;
    fiber.registers.uc_stack.ss_size = (size_t)(top - (const char *)fiber.stack);
    fiber.registers.uc_link = nullptr;
    makecontext(&fiber.registers, run, 0);
}

#else

/* Saves what a call must keep, and leaves by a jump: a return would go where the processor does not expect it. */
extern "C" void kn_emulated_switch_stacks(void **from, void *to) __attribute__((visibility("hidden")));
asm(R"(
    .pushsection .text
    .hidden kn_emulated_switch_stacks
    .globl kn_emulated_switch_stacks
    .type kn_emulated_switch_stacks, @function
kn_emulated_switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rdx
    jmpq *%rdx
    .size kn_emulated_switch_stacks, . - kn_emulated_switch_stacks
    .popsection
)");

static inline void switch_stacks(Context &from, Context &to)
{
    kn_emulated_switch_stacks(&from.stack_pointer, to.stack_pointer);
}

/* As if `run` had been called from nowhere: six registers of zero, where to go, no caller. */
static void prepare_stack(Context &fiber, char *top, void (*run)())
{
    void **words = (void **)top - 2;
    words[0] = (void *)run;
    fiber.stack_pointer = words - 6;
}

#endif

void context_of_caller(Context &context)
{
    context = Context{};
    KN_IF_TSAN(context.fiber = __tsan_get_current_fiber();)
}

void fiber_create(Context &fiber, unsigned number, void (*run)())
{
    fiber = Context{};
    void *memory = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0) {
        perror("emulated device: no memory for the stacks of CUDA threads");
        abort();
    }
    fiber.stack = (char *)memory + GUARD_BYTES;
    fiber.stack_bytes = STACK_BYTES;
    prepare_stack(fiber, (char *)fiber.stack + STACK_BYTES - number % STAGGERED * STAGGER_BYTES, run);
    KN_IF_TSAN(fiber.fiber = __tsan_create_fiber(0);)
}

void fiber_destroy(Context &fiber)
{
    KN_IF_TSAN(__tsan_destroy_fiber(fiber.fiber);)
    munmap((char *)fiber.stack - GUARD_BYTES, GUARD_BYTES + STACK_BYTES);
}

KN_UNSEEN void fiber_begin(Context &from)
{
    (void)from;
    KN_IF_ASAN(__sanitizer_finish_switch_fiber(nullptr, &from.stack, &from.stack_bytes);)
}

KN_UNSEEN void fiber_switch(Context &from, Context &to)
{
    KN_IF_ASAN(__sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);)
    KN_IF_TSAN(__tsan_switch_to_fiber(to.fiber, __tsan_switch_to_fiber_no_sync);)
    switch_stacks(from, to);
    KN_IF_ASAN(__sanitizer_finish_switch_fiber(from.fake_stack, &to.stack, &to.stack_bytes);)
}

} // namespace kn_emulated
