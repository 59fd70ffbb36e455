/* For passes that rewrite a graph (recompute, backends' lowering): taking its node list apart and putting it together
 * again. A pass takes all nodes, then puts the old ones back in order, appending new ones (by building ops) between. */
#ifndef KN_GRAPH_EDIT_H
#define KN_GRAPH_EDIT_H

#include "core/graph/graph.h"

typedef struct KnNodeList {
    int count;
    KnNode **nodes; /* free() it when done */
} KnNodeList;

void kn_graph_take_nodes(KnGraph *graph, KnNodeList *taken); /* leaves the graph without nodes */
void kn_graph_put_node(KnGraph *graph, KnNode *node);        /* at the end */

/* Gives a node another tensor for input k; outputs that lie in the old one's memory then lie in the new one's. */
void kn_node_set_input(KnNode *node, int k, KnTensor *tensor);

/* Marks nodes that depend on parameters alone (kn_graph_finish does this too, for what remains). */
void kn_graph_mark_prologue(KnGraph *graph);

#endif
