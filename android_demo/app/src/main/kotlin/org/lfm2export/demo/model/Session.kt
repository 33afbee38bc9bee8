package org.lfm2export.demo.model

import java.util.concurrent.CancellationException
import org.lfm2export.demo.bundle.Manifest
import org.lfm2export.demo.bundle.Refusal

/** One conversation with a program: where it stands, what a call may hold, and where the window ends. */
class Session(private val program: Program, private val manifest: Manifest, private val state: StateTensors?) {
    val window: Int get() = manifest.window

    /** Tokens that the state has seen. */
    var position = 0
        private set

    /** Begin a new conversation. */
    fun reset() {
        position = 0
        state?.forget() // the resident form forgets by itself, at position 0
    }

    /**
     * Logits after the last of [tokens]. Refusal, with nothing done, when they do not fit the window or vocabulary.
     * [cancelled] is asked between calls; then CancellationException, with what was fed kept and [position] right.
     */
    fun feed(tokens: IntArray, cancelled: () -> Boolean = { false }): FloatArray {
        if (tokens.isEmpty()) throw Refusal("nothing to feed")
        if (position + tokens.size > window) {
            throw Refusal("the window of $window tokens is full ($position used, ${tokens.size} more); start a new conversation")
        }
        tokens.firstOrNull { it !in 0 until manifest.vocabSize }?.let { throw Refusal("token $it is not in the vocabulary") }
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
}
