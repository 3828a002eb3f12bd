"""The capstone's sockets: what a reader wrote (mask, block pool, scheduler, paged attention) becomes options of LLM.

Each part has a narrow surface, which the exercises of chapter 11 describe:

    mask(query_positions, key_positions) -> bool tensor [num_queries, num_keys], True where a query may look
    Pool(num_blocks): num_free; allocate() -> block; share(block); release(block). Block 0 is never handed out
    Scheduler(token_budget, max_num_seqs): schedule(running, waiting, blocks) -> {request: number of tokens}
    attention(query, key_cache, value_cache, block_tables, query_starts, seq_lens, scale, mask) -> tensor like query

The sockets translate and watch: what a part gets wrong is said in one sentence that names the part and the step. They
repair nothing, so that the tokens that come out are the parts' own.
"""

from __future__ import annotations

from pagedlab.course.capstone.plug import plug
from pagedlab.course.capstone.watch import PartError, Watch

__all__ = ["PartError", "Watch", "plug"]
