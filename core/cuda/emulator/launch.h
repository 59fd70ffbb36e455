/* Launches: KN_LAUNCH checks what the device would refuse, keeps the arguments and queues the grid on its stream.
 *
 * As in CUDA nothing is returned: cudaGetLastError tells. Refused are sizes beyond the device's limits, more dynamic
 * shared memory than the kernel may have, and pointers into memory of the host's that is not pinned. */
#ifndef KN_CUDA_EMULATOR_LAUNCH_H
#define KN_CUDA_EMULATOR_LAUNCH_H

#include "core/cuda/emulator/multiprocessor.h"
#include "core/cuda/emulator/runtime.h"

#include <tuple>
#include <type_traits>
#include <utility>

namespace kn_emulated
{

/* 1 when the device would take the launch, else 0 with the error kept. */
int is_launchable(const Launch &launch, const void *kernel);

/* 1 when kernels may use what `pointer` leads to, or it is NULL. */
int is_argument(const Launch &launch, int position, const void *pointer);

/* 1 when none of the words of a struct is the address of memory that kernels must not use. */
int is_struct(const Launch &launch, int position, const void *words, size_t bytes);

/* Runs all blocks, on the device's thread. */
void run_grid(const Launch &launch);

template <class... Parameters> struct Call {
    Launch launch;
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> values;

    static void run_thread(void *argument)
    {
        Call *call = (Call *)argument;
        std::apply(call->kernel, call->values);
    }

    static int run(void *argument)
    {
        run_grid(((Call *)argument)->launch);
        return 1;
    }

    static void release(void *argument)
    {
        delete (Call *)argument;
    }
};

/* Padding may hold half an address, and is cleared first, where the compiler can. */
template <class T> int is_sound(const Launch &launch, int position, T &value)
{
    if constexpr (std::is_pointer_v<T>)
        return is_argument(launch, position, (const void *)value);
#if __has_builtin(__builtin_clear_padding)
    else if constexpr (std::is_class_v<T>) {
        __builtin_clear_padding(&value);
        return is_struct(launch, position, &value, sizeof value);
    }
#endif
    return 1;
}

template <class... Parameters> int are_sound(Call<Parameters...> &call)
{
    int position = 0;
    return std::apply([&](auto &...values) { return (is_sound(call.launch, ++position, values) && ...); }, call.values);
}

template <class... Parameters, class... Arguments>
void launch(const char *name, dim3 grid, dim3 threads, size_t shared_bytes, cudaStream_t stream,
            void (*kernel)(Parameters...), Arguments &&...arguments)
{
    using Own = Call<Parameters...>;
    Own *call = new Own{{name, grid, threads, shared_bytes, Own::run_thread, nullptr},
                        kernel,
                        std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
    call->launch.arguments = call;
    if (is_launchable(call->launch, (const void *)kernel) && are_sound(*call))
        emulated_enqueue(stream, Own::run, call, Own::release);
    else
        delete call;
}

} // namespace kn_emulated

#define KN_LAUNCH(kernel, grid, threads, shared_bytes, stream, ...)                                                    \
    kn_emulated::launch(#kernel, (grid), (threads), (shared_bytes), (stream), (kernel), __VA_ARGS__)

#endif
