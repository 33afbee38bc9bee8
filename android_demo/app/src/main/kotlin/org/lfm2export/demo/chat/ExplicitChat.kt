package org.lfm2export.demo.chat

import java.util.concurrent.CancellationException
import org.lfm2export.demo.model.Program
import org.lfm2export.demo.model.Sampler
import org.lfm2export.demo.model.Session
import org.lfm2export.demo.text.TextStream
import org.lfm2export.demo.text.Tokenizer

/** A chat over a program whose state this app owns: tokenizer, sampler and the token loop are here. */
class ExplicitChat(
    private val session: Session,
    private val program: Program,
    private val tokenizer: Tokenizer,
    private val template: ChatTemplate,
    private val eosIds: Set<Int>,
    private val sampler: Sampler = Sampler(),
    private val nanoseconds: () -> Long = System::nanoTime,
) : ChatModel {
    private val fed = mutableListOf<Int>() // the tokens behind the session's state

    @Volatile private var stopped = false

    override fun reset() {
        fed.clear()
        session.reset()
    }

    override fun stop() {
        stopped = true
    }

    override fun close() = program.close()

    override fun reply(messages: List<Message>, tools: List<Any>, limit: Int, onText: (String) -> Unit): Reply {
        stopped = false
        return try {
            answer(tokenizer.encode(template.render(messages, tools)).toList(), limit, onText)
        } catch (error: CancellationException) { // part of the prompt was fed
            reset()
            Reply("", Speed(0, 0.0, 0, 0.0), Ending.STOPPED)
        } catch (error: Exception) { // what the state has seen is not known
            reset()
            throw error
        }
    }

    private fun answer(wanted: List<Int>, limit: Int, onText: (String) -> Unit): Reply {
        val goesOn = fed.isNotEmpty() && fed.size < wanted.size && wanted.subList(0, fed.size) == fed
        if (!goesOn) reset()
        val prompt = wanted.subList(fed.size, wanted.size)
        val start = nanoseconds()
        var logits = feed(prompt)
        val prefilled = nanoseconds()
        val answer = Answer(onText)
        val seen = wanted.toMutableList()
        var ending = Ending.LIMIT
        var count = 0
        while (count < limit) {
            if (stopped) ending = Ending.STOPPED
            if (session.position >= session.window) ending = Ending.WINDOW
            if (ending != Ending.LIMIT) break
            val token = sampler.choose(logits, seen)
            logits = feed(listOf(token))
            if (token in eosIds) {
                ending = Ending.COMPLETE
                break
            }
            count++
            seen += token
            answer.add(tokenizer.bytesOf(token))
        }
        val text = answer.finish()
        return Reply(text, Speed(prompt.size, seconds(start, prefilled), count, seconds(prefilled, nanoseconds())), ending)
    }

    /** Feed and remember. A stop is heeded between the calls of a long prompt. */
    private fun feed(tokens: List<Int>): FloatArray {
        val logits = session.feed(tokens.toIntArray()) { stopped && tokens.size > 1 }
        fed += tokens
        return logits
    }

    private fun seconds(from: Long, to: Long) = (to - from) / 1e9

    private class Answer(private val onText: (String) -> Unit) {
        private val stream = TextStream()
        private val text = StringBuilder()

        fun add(bytes: ByteArray) = take(stream.add(bytes))

        fun finish(): String {
            take(stream.finish())
            return text.toString()
        }

        private fun take(piece: String) {
            if (piece.isEmpty()) return
            text.append(piece)
            onText(piece)
        }
    }
}
