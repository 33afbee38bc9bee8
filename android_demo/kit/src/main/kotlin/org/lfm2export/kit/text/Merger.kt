package org.lfm2export.kit.text

import java.util.PriorityQueue

/** Byte-pair merging on token ids: always the pair of the lowest rank, of equals the leftmost. */
class Merger(private val merges: Map<Long, Merge>) {
    /** What a pair becomes, and how early the tokenizer learned it. */
    class Merge(val rank: Int, val id: Int)

    private class Candidate(val left: Int, val pair: Long, val merge: Merge) : Comparable<Candidate> {
        private val order = key(merge.rank, left)

        override fun compareTo(other: Candidate): Int = order.compareTo(other.order)
    }

    /** The tokens of one word. Linear in its length but for a logarithm, so that no text can stall the app. */
    fun merge(symbols: IntArray): IntArray {
        val ids = symbols.copyOf()
        val next = IntArray(ids.size) { if (it + 1 < ids.size) it + 1 else END }
        val previous = IntArray(ids.size) { it - 1 }
        val alive = BooleanArray(ids.size) { true }
        val queue = PriorityQueue<Candidate>()

        fun propose(left: Int) {
            if (left < 0 || next[left] == END) return
            val pair = key(ids[left], ids[next[left]])
            merges[pair]?.let { queue.add(Candidate(left, pair, it)) }
        }
        for (left in ids.indices) propose(left)
        while (true) {
            val best = queue.poll() ?: break
            val left = best.left
            val right = if (alive[left]) next[left] else END
            if (right == END || key(ids[left], ids[right]) != best.pair) continue // a merge since then took its part
            ids[left] = best.merge.id
            alive[right] = false
            next[left] = next[right]
            if (next[right] != END) previous[next[right]] = left
            propose(previous[left])
            propose(left)
        }
        return ids.indices.filter { alive[it] }.map { ids[it] }.toIntArray()
    }

    companion object {
        private const val END = -1

        fun key(left: Int, right: Int): Long = (left.toLong() shl 32) or right.toLong()
    }
}
