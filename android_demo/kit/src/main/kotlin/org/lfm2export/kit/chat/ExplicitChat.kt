package org.lfm2export.kit.chat

import java.io.File
import java.util.concurrent.CancellationException
import org.lfm2export.kit.model.Program
import org.lfm2export.kit.model.Sampler
import org.lfm2export.kit.model.Session
import org.lfm2export.kit.state.SavedChat
import org.lfm2export.kit.state.StateFile
import org.lfm2export.kit.text.TextStream
import org.lfm2export.kit.text.Tokenizer

/** A chat over a program whose state the caller owns: tokenizer, sampler and the token loop are here. */
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

    override val window: Int get() = session.window

    override val savesState: Boolean get() = true

    override fun save(file: File, messages: List<Message>, tools: List<Any>) = stateFile(file).write(SavedChat(fed, messages, tools))

    override fun load(file: File): SavedChat {
        reset() // should the file be refused halfway
        val saved = stateFile(file).read()
        fed += saved.tokens
        session.standAt(fed.size)
        return saved
    }

    private fun stateFile(file: File) = StateFile(file, session.manifest, checkNotNull(session.state) { "a session without state" })

    override val verifiesDrafts: Boolean get() = session.verifies > 1

    override fun count(messages: List<Message>, tools: List<Any>): Int = prompt(messages, tools).size

    override fun reply(
        messages: List<Message>,
        tools: List<Any>,
        limit: Int,
        drafting: Boolean,
        cancelled: () -> Boolean,
        onText: (String) -> Unit,
    ): Reply {
        stopped = false
        return try {
            answer(prompt(messages, tools), limit, if (drafting) Drafts() else null, cancelled, onText)
        } catch (error: CancellationException) { // part of the prompt was fed, or of a reply that nobody wants
            reset()
            if (cancelled() || !stopped) throw error
            Reply("", Speed(0, 0.0, 0, 0.0), Ending.STOPPED)
        } catch (error: Exception) { // what the state has seen is not known
            reset()
            throw error
        }
    }

    private fun prompt(messages: List<Message>, tools: List<Any>) = tokenizer.encode(template.render(messages, tools)).toList()

    private fun answer(wanted: List<Int>, limit: Int, drafts: Drafts?, cancelled: () -> Boolean, onText: (String) -> Unit): Reply {
        val goesOn = fed.isNotEmpty() && fed.size < wanted.size && wanted.subList(0, fed.size) == fed
        if (!goesOn) reset()
        val prompt = wanted.subList(fed.size, wanted.size)
        val start = nanoseconds()
        var step = Step(feed(prompt) { stopped || cancelled() }, emptyList(), null)
        val prefilled = nanoseconds()
        val answer = Answer(onText)
        val seen = wanted.toMutableList()
        var ending = Ending.LIMIT
        var count = 0
        var single = 0
        var singleSeconds = 0.0
        while (count < limit) {
            if (cancelled()) throw CancellationException()
            if (stopped) ending = Ending.STOPPED
            if (session.position >= session.window) ending = Ending.WINDOW
            if (ending != Ending.LIMIT) break
            val token = step.next ?: sampler.choose(step.logits, seen)
            val room = minOf(limit - count, session.window - session.position, session.verifies)
            val guesses = drafts?.propose(fed + token, room - 1).orEmpty()
            val called = nanoseconds()
            if (guesses.isEmpty()) {
                step = Step(feed(listOf(token)), listOf(token), null)
                single++
                singleSeconds += seconds(called, nanoseconds())
            } else {
                step = verified(token, guesses, seen)
                drafts?.judged(guesses.size, step.fed.size - 1)
            }
            for (each in step.fed) {
                if (each in eosIds) {
                    ending = Ending.COMPLETE
                    break
                }
                count++
                seen += each
                answer.add(tokenizer.bytesOf(each))
            }
            if (ending == Ending.COMPLETE) break
        }
        val text = answer.finish()
        val newSeconds = seconds(prefilled, nanoseconds())
        val speed = Speed(prompt.size, seconds(start, prefilled), count, newSeconds, drafts?.drafted ?: 0, drafts?.accepted ?: 0, single, singleSeconds)
        return Reply(text, speed, ending)
    }

    /** What was [fed], the [logits] behind it, and the token that follows, where the sampler has drawn it already. */
    private class Step(val logits: FloatArray, val fed: List<Int>, val next: Int?)

    /** Feed a token and as many of the guesses at what follows as the sampler draws, none behind an end mark. */
    private fun verified(token: Int, guesses: List<Int>, seen: List<Int>): Step {
        val rows = session.verify((listOf(token) + guesses).toIntArray())
        val taken = mutableListOf(token)
        var next: Int? = null
        for ((row, guess) in rows.zip(guesses)) {
            if (taken.last() in eosIds) break
            next = sampler.choose(row, seen + taken)
            if (next != guess) break
            taken += guess
            next = null
        }
        session.keep(taken.size)
        fed += taken
        return Step(rows[taken.size - 1], taken, next)
    }

    /** Feed and remember. [ended] is heeded between the calls of a long prompt. */
    private fun feed(tokens: List<Int>, ended: () -> Boolean = { false }): FloatArray {
        val logits = session.feed(tokens.toIntArray(), ended)
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
