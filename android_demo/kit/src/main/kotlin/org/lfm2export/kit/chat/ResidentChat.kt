package org.lfm2export.kit.chat

import java.io.Closeable
import java.util.concurrent.CancellationException
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.text.Tokenizer

/** ExecuTorch's stock text runner, as far as a chat needs it. */
interface TextRunner : Closeable {
    /** Tokens that a call fed as prompt and made, by the runner's own count. */
    data class Counts(val prompt: Int, val generated: Int)

    /** Go on at the current position with [prompt] and stream what follows, the end mark too. Blocks. */
    fun generate(prompt: String, sequenceLength: Int, onPiece: (String) -> Unit): Counts

    /** Back to position 0. */
    fun reset()

    /** End `generate`, soon; from any thread. */
    fun stop()
}

/**
 * A chat over the resident form: the runner tokenizes, samples and holds the state; this class writes the template, feeds
 * only what is new, hides the end mark, and minds the window, which the runner does not once a file takes prompts in
 * chunks: it then counts a call's tokens, not the conversation's.
 */
class ResidentChat(
    private val runner: TextRunner,
    private val tokenizer: Tokenizer,
    private val template: ChatTemplate,
    private val eosTexts: Set<String>,
    override val window: Int,
    private val maxTokens: Int,
    private val nanoseconds: () -> Long = System::nanoTime,
) : ChatModel {
    private var said = "" // the text behind the runner's state
    private var position = 0

    @Volatile private var stopped = false

    override fun reset() {
        said = ""
        position = 0
        runner.reset()
    }

    override fun stop() {
        stopped = true
        runner.stop()
    }

    override fun close() = runner.close()

    override fun count(messages: List<Message>, tools: List<Any>): Int = tokenizer.encode(template.render(messages, tools)).size

    override fun reply(
        messages: List<Message>,
        tools: List<Any>,
        limit: Int,
        drafting: Boolean,
        cancelled: () -> Boolean,
        onText: (String) -> Unit,
    ): Reply {
        stopped = false
        val wanted = template.render(messages, tools)
        if (said.isEmpty() || !wanted.startsWith(said)) reset()
        val prompt = wanted.substring(said.length)
        val count = tokenizer.encode(prompt).size
        val room = window - position - count
        if (room < 2) throw Refusal("the window of $window tokens is full ($position used, $count more); start a new conversation")
        return answer(wanted, prompt, minOf(limit, room), limit > room, cancelled, onText)
    }

    private fun answer(wanted: String, prompt: String, most: Int, atWindow: Boolean, cancelled: () -> Boolean, onText: (String) -> Unit): Reply {
        val text = StringBuilder()
        var ended = false
        var first = 0L
        val start = nanoseconds()
        val counts = try {
            runner.generate(prompt, sequenceLength(prompt, most)) { piece ->
                if (first == 0L) first = nanoseconds()
                when {
                    ended || stopped || cancelled() -> runner.stop() // the runner goes on past an end mark that is the first token
                    piece in eosTexts -> ended = true
                    else -> {
                        text.append(piece)
                        onText(piece)
                    }
                }
            }
        } catch (error: Exception) {
            reset()
            throw error
        }
        val end = nanoseconds()
        if (first == 0L) first = end
        if (cancelled()) {
            reset()
            throw CancellationException()
        }
        val whole = ended && !stopped && text.isNotEmpty()
        if (whole) { // the runner does not feed the end mark
            said = wanted + text
            position += counts.prompt + counts.generated
        } else {
            reset() // what of the last tokens the state has seen is not known: the next turn is fed from the start
        }
        val ending = when {
            stopped -> Ending.STOPPED
            ended -> Ending.COMPLETE
            else -> if (atWindow) Ending.WINDOW else Ending.LIMIT
        }
        return Reply(text.toString(), Speed(counts.prompt, (first - start) / 1e9, counts.generated, (end - first) / 1e9), ending)
    }

    /**
     * The one limit that `LlmModule` heeds. It means tokens of the whole conversation where one call holds a whole
     * window, and new tokens where a prompt goes in by chunks.
     */
    private fun sequenceLength(prompt: String, most: Int): Int =
        if (maxTokens < window) most else position + tokenizer.encode(prompt).size + most
}
