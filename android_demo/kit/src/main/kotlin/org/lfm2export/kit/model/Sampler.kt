package org.lfm2export.kit.model

import java.util.Random
import kotlin.math.exp
import org.lfm2export.kit.bundle.Refusal

/**
 * Temperature, min-p (arXiv:2407.01082) and repetition penalty (arXiv:1909.05858), with what LFM2's model cards
 * recommend. Temperature 0 is greedy: the most likely token after the penalty, of equals the lowest id.
 */
class Sampler(
    internal val temperature: Double = 0.3,
    private val minP: Double = 0.15,
    private val repetitionPenalty: Double = 1.05,
    private val random: Random = Random(),
) {
    init {
        if (temperature < 0 || minP !in 0.0..1.0 || !(repetitionPenalty > 0)) {
            throw Refusal("sampling: temperature from 0, min-p from 0 to 1, repetition penalty above 0")
        }
    }

    /** The next token, given logits `[vocab]` and every token so far. Refusal for logits that are no numbers. */
    fun choose(logits: FloatArray, seen: Collection<Int>): Int {
        val scores = penalized(logits, seen)
        val best = greedy(scores)
        if (temperature == 0.0) return best
        val weights = weights(scores)
        var rest = random.nextDouble() * weights.sum()
        for ((token, weight) in weights.withIndex()) {
            rest -= weight
            if (weight > 0 && rest < 0) return token
        }
        return best // rounding used up the last of the weight
    }

    /** What each token weighs in the draw, the most likely one 1; those below [minP] of it nothing. */
    internal fun weights(scores: DoubleArray): DoubleArray {
        val largest = scores.max()
        return DoubleArray(scores.size) { token ->
            exp((scores[token] - largest) / temperature).let { if (it < minP) 0.0 else it }
        }
    }

    internal fun penalized(logits: FloatArray, seen: Collection<Int>): DoubleArray {
        val scores = DoubleArray(logits.size) { logits[it].toDouble() }
        if (scores.any { it.isNaN() || it == Double.POSITIVE_INFINITY }) throw Refusal("the program's logits are not numbers")
        for (token in seen.toSet()) {
            scores[token] = if (scores[token] > 0) scores[token] / repetitionPenalty else scores[token] * repetitionPenalty
        }
        return scores
    }

    companion object {
        /** A sampler that always takes the most likely token. */
        val GREEDY = Sampler(temperature = 0.0, minP = 0.0, repetitionPenalty = 1.0)

        /** Index of the largest, of equals the first. */
        fun greedy(scores: DoubleArray): Int = scores.indices.maxBy { scores[it] }
    }
}
