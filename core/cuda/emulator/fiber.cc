/* Fibers: their stacks, and the switch for x86-64. */
#include "core/cuda/emulator/fiber.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace kn_emulated
{

static constexpr size_t GUARD_BYTES = 64 << 10, STACK_BYTES = 256 << 10;

/* Equal offsets in all stacks would share the same few sets of the cache. */
static constexpr size_t STAGGER_BYTES = 320, STAGGERED = 32;

#ifdef KN_EMULATED_UCONTEXT

KN_UNSEEN static void prepare_stack(Context &fiber, char *top, void (*run)())
{
    getcontext(&fiber.registers);
    fiber.registers.uc_stack.ss_sp = (void *)fiber.stack;
    fiber.registers.uc_stack.ss_size = (size_t)(top - (const char *)fiber.stack);
    fiber.registers.uc_link = nullptr;
    makecontext(&fiber.registers, run, 0);
}

#else

/* Saves what a call must keep, and leaves by a jump: a return would go where the processor does not expect it. */
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
    ret
    .size kn_emulated_switch_stacks, . - kn_emulated_switch_stacks
    .popsection
)");

/* As if `run` had been called from nowhere: six registers of zero, where to go, no caller. */
KN_UNSEEN static void prepare_stack(Context &fiber, char *top, void (*run)())
{
    void **words = (void **)top - 2;
    words[0] = (void *)run;
    fiber.stack_pointer = words - 6;
}

#endif

KN_UNSEEN void context_of_caller(Context &context)
{
    context = Context{};
    KN_IF_TSAN(context.fiber = __tsan_get_current_fiber();)
#ifdef KN_EMULATED_ASAN
    pthread_attr_t attributes;
    void *stack;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &context.stack_bytes);
    pthread_attr_destroy(&attributes);
    context.stack = stack;
#endif
}

KN_UNSEEN void fiber_create(Context &fiber, unsigned number, void (*run)())
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

} // namespace kn_emulated
