package org.lfm2export.kit.model

import java.util.concurrent.CancellationException
import org.lfm2export.kit.bundle.Manifest
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.bundle.TensorSpec

/** One conversation with a program: where it stands, what a call may hold, and where the window ends. */
class Session(private val program: Program, internal val manifest: Manifest, internal val state: StateTensors?) {
    val window: Int get() = manifest.window

    /** The most tokens of a [verify]; 0 where the program has no method for it. */
    val verifies: Int get() = manifest.verifier?.maxTokens ?: 0

    /** Tokens that the state has seen. */
    var position = 0
        private set

    private var columns = emptyMap<TensorSpec, FloatArray>() // of the last verified tokens

    /** Begin a new conversation. */
    fun reset() {
        position = 0
        state?.forget() // the resident form forgets by itself, at position 0
    }

    /** Go on at [position]: the state was set to one that has seen as many tokens. */
    fun standAt(position: Int) {
        this.position = position
    }

    /**
     * Logits after the last of [tokens]. Refusal, with nothing done, when they do not fit the window or vocabulary.
     * [cancelled] is asked between calls; then CancellationException, with what was fed kept and [position] right.
     */
    fun feed(tokens: IntArray, cancelled: () -> Boolean = { false }): FloatArray {
        check(tokens)
        var logits = FloatArray(0)
        for (start in tokens.indices step manifest.maxTokens) {
            if (cancelled()) throw CancellationException()
            val end = minOf(start + manifest.maxTokens, tokens.size)
            logits = program.call(LongArray(end - start) { tokens[start + it].toLong() }, position.toLong())
            if (logits.size != manifest.vocabSize) throw Refusal("the program gave ${logits.size} logits, expected ${manifest.vocabSize}")
            position += end - start
        }
        return logits
    }

    /** Logits after each of [tokens], none of which is part of the conversation until [keep]. Refusal as of [feed]. */
    fun verify(tokens: IntArray): List<FloatArray> {
        check(tokens)
        if (tokens.size > verifies) throw Refusal("${tokens.size} tokens to verify, of $verifies")
        val verified = program.verify(LongArray(tokens.size) { tokens[it].toLong() }, position.toLong())
        val vocab = manifest.vocabSize
        val states = manifest.verifier?.columns.orEmpty()
        val sizes = states.map { (it.shape[1] + tokens.size) * it.shape[2] }
        if (verified.logits.size != tokens.size * vocab || verified.columns.map { it.size } != sizes) {
            throw Refusal("the program's verified tokens are not as the manifest says")
        }
        columns = states.zip(verified.columns).toMap()
        return tokens.indices.map { verified.logits.copyOfRange(it * vocab, (it + 1) * vocab) }
    }

    /** Take the first [count] tokens of the [verify] before this call into the conversation. The others never happened. */
    fun keep(count: Int) {
        state?.goOn(columns, count)
        position += count
    }

    private fun check(tokens: IntArray) {
        if (tokens.isEmpty()) throw Refusal("nothing to feed")
        if (position + tokens.size > window) {
            throw Refusal("the window of $window tokens is full ($position used, ${tokens.size} more); start a new conversation")
        }
        tokens.firstOrNull { it !in 0 until manifest.vocabSize }?.let { throw Refusal("token $it is not in the vocabulary") }
    }
}
