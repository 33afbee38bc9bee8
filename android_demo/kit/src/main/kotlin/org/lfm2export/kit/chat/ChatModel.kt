package org.lfm2export.kit.chat

import java.io.Closeable
import java.io.File
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.state.SavedChat
import org.lfm2export.kit.state.StateFile

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

/**
 * The assistant's turn: its text without the end mark, which special tokens may be part of, and how many of the oldest
 * turns were forgotten to make room for it.
 */
data class Reply(val text: String, val speed: Speed, val ending: Ending, val forgottenTurns: Int = 0)

/** A chat with a loaded model, in either form. One thread at a time; only [stop] may be called from another. */
interface ChatModel : Closeable {
    /** Tokens of prompts and replies together that a conversation may have. */
    val window: Int

    /** Whether replies can be drafted. */
    val verifiesDrafts: Boolean get() = false

    /** Tokens of the prompt that [reply] would answer. */
    fun count(messages: List<Message>, tools: List<Any>): Int

    /**
     * Answer [messages], at most [limit] tokens, handing on text as it comes. Refusal when the window is full. With
     * [drafting], where [verifiesDrafts], the same is said in less time, if it repeats what was said before.
     * [cancelled] is asked between calls of the program; then CancellationException.
     */
    fun reply(
        messages: List<Message>,
        tools: List<Any>,
        limit: Int,
        drafting: Boolean = false,
        cancelled: () -> Boolean = { false },
        onText: (String) -> Unit,
    ): Reply

    /** Whether the state can be saved: in the explicit form. */
    val savesState: Boolean get() = false

    /** Write the state, and what was said, to [file]; see [StateFile.write]. Refusal where not [savesState]. */
    fun save(file: File, messages: List<Message>, tools: List<Any>): Unit = throw Refusal(HIDDEN)

    /** Go on from what [save], or `lfm2-export chat`, wrote: the next reply feeds only what is new. Refusal as of [StateFile.read]. */
    fun load(file: File): SavedChat = throw Refusal(HIDDEN)

    /** Forget the conversation: the next reply is as if it were the first. */
    fun reset()

    /** End the reply that is being made, soon. */
    fun stop()

    private companion object {
        const val HIDDEN = "the resident form keeps its state to itself; saving needs a bundle exported with --form explicit"
    }
}
