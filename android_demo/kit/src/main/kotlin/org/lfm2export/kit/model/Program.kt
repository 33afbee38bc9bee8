package org.lfm2export.kit.model

import java.io.Closeable
import org.lfm2export.kit.bundle.Refusal

/** The methods of a loaded `.pte`, with the state, whoever holds it. */
interface Program : Closeable {
    /** Logits `[vocab]` after [tokens], the first of which stands at [position]. */
    fun call(tokens: LongArray, position: Long): FloatArray

    /** What follows each of [tokens], where there is a method for it. Of the state, only caches are written: behind [position]. */
    fun verify(tokens: LongArray, position: Long): Verified = throw Refusal("this program verifies no drafts")
}

/** Logits `[T, vocab]`, and what each convolution or sliding attention went over: its state as of any token is a part of that. */
class Verified(val logits: FloatArray, val columns: List<FloatArray>)
