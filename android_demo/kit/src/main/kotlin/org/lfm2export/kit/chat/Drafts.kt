package org.lfm2export.kit.chat

import kotlin.math.pow

/**
 * What followed the longest run of last tokens, of 8, 4 or 2, the last time it occurred; again and again, where it is short.
 * Where none did, what followed the last token behind a difference of the last draft's copy.
 */
class Lookup {
    private val ends = HashMap<List<Int>, Int>() // run of tokens → where its last occurrence ends
    private var indexed = 0
    private var original = 0 // from where
    private var copy = 0 // and to where the last draft copied; the text itself, at first

    /** Up to [most] tokens that may follow all that was [seen], which may only grow. */
    fun guess(seen: List<Int>, most: Int): List<Int> {
        for (end in maxOf(indexed, 1) until seen.size) {
            for (size in RUNS) if (size <= end) ends[seen.subList(end - size, end).toList()] = end
        }
        indexed = seen.size
        val start = behindRun(seen) ?: behindDifference(seen) ?: return emptyList()
        original = start
        copy = seen.size
        return List(most) { seen[start + it % (seen.size - start)] }
    }

    private fun behindRun(seen: List<Int>): Int? = RUNS.filter { it < seen.size }.firstNotNullOfOrNull { ends[seen.takeLast(it)] }

    private fun behindDifference(seen: List<Int>): Int? {
        while (copy < seen.size && seen[original] == seen[copy]) {
            original++
            copy++
        }
        if (seen.size - copy > DIFFERENCE) return null
        return (original + 1 until minOf(original + 1 + DIFFERENCE, seen.size - 1)).find { seen[it] == seen.last() }?.plus(1)
    }

    private companion object {
        val RUNS = listOf(8, 4, 2) // tokens that are looked up together
        const val DIFFERENCE = 8 // tokens behind which a copy and its original may agree again
    }
}

/**
 * Guesses at the next tokens, which a program verifies together: as `lfm2_export/chat/drafts.py`, which says why. How many
 * are made depends on how many were right lately; they pay for themselves.
 */
class Drafts(private val source: Lookup = Lookup()) {
    var drafted = 0
        private set
    var accepted = 0
        private set
    private var acceptance = PRIOR
    private var credit = CREDIT // steps

    /** Guesses at what follows, at most that many; none that there is no credit for. Once for each call. */
    fun propose(seen: List<Int>, most: Int): List<Int> {
        credit = minOf(MOST, credit + EARNED)
        val room = if (credit < CREDIT) minOf(most, SHORT) else most
        val length = bestLength(acceptance, room).takeIf { it > 0 } ?: minOf(room, SHORT)
        return if (length > 0 && cost(length) <= credit) source.guess(seen, length) else emptyList()
    }

    /** Take note of how many guesses of a draft were right. Behind the first wrong one none is judged. */
    fun judged(drafted: Int, accepted: Int) {
        this.drafted += drafted
        this.accepted += accepted
        credit = minOf(MOST, credit + accepted - cost(drafted))
        repeat(accepted) { acceptance += MEMORY * (1 - acceptance) }
        if (accepted < drafted) acceptance -= MEMORY * acceptance
    }

    /** How many guesses give the most tokens for the time; 0 for none. */
    private fun bestLength(acceptance: Double, most: Int): Int {
        var best = 1.0
        var length = 0
        var expected = 1.0
        for (guesses in 1..most) {
            expected += acceptance.pow(guesses)
            val gain = expected / (1 + cost(guesses))
            if (gain > best) {
                best = gain
                length = guesses
            }
        }
        return length
    }

    private fun cost(guesses: Int) = DRAFT + ROW * guesses + BLOCK * (guesses / BLOCK_ROWS)

    private companion object {
        const val PRIOR = 0.65 // acceptance before anything is known
        const val MEMORY = 0.1 // weight of each guess that is judged
        const val DRAFT = 0.45 // of a step: what a draft costs,
        const val ROW = 0.02 // each guess of it,
        const val BLOCK = 0.9 // and every further block
        const val BLOCK_ROWS = 8 // of rows
        const val CREDIT = 2.0 // steps that drafts may lose: at first,
        const val EARNED = 0.005 // more with each call,
        const val MOST = 8.0 // and in all
        const val SHORT = 2 // guesses where drafts have lost
    }
}
