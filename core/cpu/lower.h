/* The CPU's favoured form of a graph: weights are packed for the matrix product once per change of parameters. */
#ifndef KN_CPU_LOWER_H
#define KN_CPU_LOWER_H

#include "core/graph/graph.h"

/* Gives every matmul whose B operand depends on parameters alone a packed B. Call before kn_graph_finish, which then
 * moves the packings to the prologue and drops the casts that they made needless. */
void kn_cpu_lower(KnGraph *graph);

#endif
