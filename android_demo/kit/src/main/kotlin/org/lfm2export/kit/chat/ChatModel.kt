package org.lfm2export.kit.chat

import java.io.Closeable

/** Of one reply. The first token's time is the prefill's. */
data class Speed(
    val promptTokens: Int,
    val promptSeconds: Double,
    val newTokens: Int,
    val newSeconds: Double,
    val drafted: Int = 0,
    val accepted: Int = 0,
    val singleTokens: Int = 0, // decoded one by one beside the drafts
    val singleSeconds: Double = 0.0,
) {
    /** For people: `prefill 31 tokens at 812 tok/s, decode 12 tokens at 402 tok/s`. */
    fun line(): String =
        "prefill $promptTokens tokens at ${rate(promptTokens, promptSeconds)} tok/s, " +
            "decode $newTokens tokens at ${rate(newTokens, newSeconds)} tok/s" + (if (drafted > 0) drafts() else "")

    private fun drafts(): String {
        val alone = if (singleTokens > 0) ", ${rate(singleTokens, singleSeconds)} without" else ""
        return "$alone (accepted $accepted of $drafted drafted)"
    }

    private fun rate(tokens: Int, seconds: Double) = if (seconds > 0) "%.1f".format(tokens / seconds) else "–"
}

/** Why a reply ended. */
enum class Ending { COMPLETE, LIMIT, WINDOW, STOPPED }

/** The assistant's turn: its text without the end mark, which special tokens may be part of. */
data class Reply(val text: String, val speed: Speed, val ending: Ending)

/** A chat with a loaded model, in either form. One thread at a time; only [stop] may be called from another. */
interface ChatModel : Closeable {
    /** Whether replies can be drafted. */
    val verifiesDrafts: Boolean get() = false

    /**
     * Answer [messages], at most [limit] tokens, handing on text as it comes. Refusal when the window is full. With
     * [drafting], where [verifiesDrafts], the same is said in less time, if it repeats what was said before.
     */
    fun reply(messages: List<Message>, tools: List<Any>, limit: Int, drafting: Boolean = false, onText: (String) -> Unit): Reply

    /** Forget the conversation: the next reply is as if it were the first. */
    fun reset()

    /** End the reply that is being made, soon. */
    fun stop()
}
