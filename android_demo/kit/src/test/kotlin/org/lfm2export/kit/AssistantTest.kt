package org.lfm2export.kit

import java.io.File
import java.util.concurrent.CountDownLatch
import java.util.concurrent.Executors
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.cancel
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.lfm2export.kit.chat.Ending
import org.lfm2export.kit.chat.ExplicitChat
import org.lfm2export.kit.chat.ChatTemplate
import org.lfm2export.kit.chat.Message
import org.lfm2export.kit.device.LoadedModel
import org.lfm2export.kit.model.FakeProgram
import org.lfm2export.kit.model.Program
import org.lfm2export.kit.model.Sampler
import org.lfm2export.kit.model.Session
import org.lfm2export.kit.model.StateTensors
import org.lfm2export.kit.text.Tokenizer

class AssistantTest {
    @get:Rule val temporary = TemporaryFolder()

    private val tokenizer = Tokenizer.parse(TinyBundle.tokenizer().toString(), "tokenizer.json")
    private val threads = mutableSetOf<Thread>()
    private var closed = false
    private var before: (calls: Int) -> Unit = {}

    /** Says `Hi!` and the end mark, whatever it is asked. */
    private val inner = FakeProgram { _, tokens -> mapOf(10L to 'H', 'H'.code.toLong() to 'i', 'i'.code.toLong() to '!')[tokens.last()]?.code ?: TinyBundle.END }

    private val program = object : Program by inner {
        override fun call(tokens: LongArray, position: Long): FloatArray {
            before(inner.calls.size)
            threads += Thread.currentThread()
            return inner.call(tokens, position)
        }

        override fun close() {
            closed = true
        }
    }

    private val assistant by lazy {
        val bundle = TinyBundle.open(TinyBundle.folder(temporary.newFolder()))
        val session = Session(program, bundle.manifest, StateTensors(bundle.manifest.state))
        val chat = ExplicitChat(session, program, tokenizer, ChatTemplate("<|startoftext|>"), setOf(TinyBundle.END), Sampler.GREEDY)
        Assistant(LoadedModel(bundle, chat, bundle.golden(), session), Executors.newSingleThreadExecutor().asCoroutineDispatcher())
    }

    private fun ask(text: String) = runBlocking { assistant.ask(text).toList() }

    @Test fun piecesAreTheReply() {
        assertEquals(listOf("H", "i", "!"), ask("a"))
        assertEquals("Hi!" to Ending.COMPLETE, assistant.lastReply?.let { it.text to it.ending })
        assertEquals(listOf(Message("user", "a"), Message("assistant", "Hi!")), assistant.messages)
    }

    @Test fun nothingHappensUntilAFlowIsCollected() {
        assistant.ask("a")
        assertEquals(emptyList<Message>(), assistant.messages)
        assertTrue(inner.calls.isEmpty())
    }

    @Test fun oneThreadRunsTheModelAndNotTheCallers() {
        runBlocking {
            val all = List(2) { launch(Dispatchers.Default) { assistant.ask("a").toList() } }
            all.forEach { it.join() }
        }
        assertEquals(1, threads.size)
        assertFalse(Thread.currentThread() in threads)
        assertTrue(assistant.messages.chunked(2).all { (asked, said) -> asked.content to said.content == "a" to "Hi!" }) // never mixed
    }

    @Test fun whoStopsCollectingTakesTheTurnBack() {
        val first = ask("a")
        val remembered = assistant.messages
        val cancelled = CountDownLatch(1)
        val calls = inner.calls.size
        before = { if (it == calls + 4) cancelled.await() } // two for the prompt, one each for H and i
        val heard = mutableListOf<String>()
        runBlocking {
            val job = launch(Dispatchers.Default) {
                assistant.ask("b").collect {
                    heard += it
                    if (heard.size == 2) {
                        cancel()
                        cancelled.countDown()
                    }
                }
            }
            job.join()
        }
        assertEquals(listOf("H", "i"), heard)
        val made = inner.calls.size
        assertTrue(made - calls in 4..5) // at most the one it was in
        assertEquals(remembered, assistant.messages)
        assertEquals(first.joinToString(""), assistant.lastReply?.text)
        before = {}
        assertEquals(first, ask("c"))
        assertEquals(0L, inner.calls[made].first)
    }

    @Test fun aLongPromptIsGivenUpBetweenItsParts() {
        val started = CountDownLatch(1)
        val cancelled = CountDownLatch(1)
        before = {
            started.countDown()
            cancelled.await()
        }
        runBlocking {
            val job = launch(Dispatchers.Default) { assistant.ask("a".repeat(20)).collect() }
            started.await()
            job.cancel()
            cancelled.countDown()
            job.join()
        }
        assertEquals(16, inner.calls.single().second.size) // of the prompt's tokens, as many as a call may have
        assertEquals(emptyList<Message>(), assistant.messages)
    }

    @Test fun aStopKeepsWhatWasSaid() {
        before = { if (it == 3) assistant.stop() }
        assertEquals("Hi", ask("a").joinToString(""))
        assertEquals(Ending.STOPPED, assistant.lastReply?.ending)
        assertEquals(Message("assistant", "Hi"), assistant.messages.last())
    }

    @Test fun aRefusalReachesWhoCollectsAndChangesNothing() {
        assertRefused("full") { ask("a".repeat(60)) }
        assertEquals(emptyList<Message>(), assistant.messages)
    }

    @Test fun aConversationGoesOnFromAFile() {
        val file = File(temporary.root, "talk.state")
        ask("a")
        runBlocking { assistant.save(file) }
        val seen = inner.calls.last().first + 1
        runBlocking { assistant.begin() }
        ask("b")
        runBlocking { assistant.load(file) }
        assertEquals(listOf("a", "Hi!"), assistant.messages.map { it.content })
        val calls = inner.calls.size
        ask("c")
        assertEquals(seen, inner.calls[calls].first) // only what is new is fed
    }

    @Test fun aFileThatIsRefusedChangesNothing() {
        ask("a")
        val file = temporary.newFile().apply { writeText("no state") }
        assertRefused("not a saved state") { runBlocking { assistant.load(file) } }
        assertEquals(listOf("a", "Hi!"), assistant.messages.map { it.content })
        assertEquals(listOf("H", "i", "!"), ask("b"))
    }

    @Test fun parityIsCheckedBetweenTurns() {
        ask("a")
        assertFalse(runBlocking { assistant.checkParity() }.passed) // its golden reply is another
        assertEquals(listOf("H", "i", "!"), ask("b"))
    }

    @Test fun aClosedModelIsFreedAndRefuses() {
        runBlocking { assistant.close().join() }
        assertTrue(closed)
        assertRefused("closed") { ask("a") }
        assertRefused("closed") { runBlocking { assistant.begin() } }
        assertTrue(assistant.close().isCompleted)
    }

    @Test fun closingCancelsTheReplyThatIsBeingMade() {
        lateinit var freed: Job
        before = { if (it == 3) freed = assistant.close() }
        assertThrows(CancellationException::class.java) { ask("a") }
        runBlocking { freed.join() }
        assertEquals(4, inner.calls.size)
        assertTrue(closed)
    }

    @Test fun anArchiveIsUnpackedOrGivenUp() {
        val archive = TinyBundle.archive()
        val target = File(temporary.root, "unpacked")
        var last = 0L to 0L
        runBlocking { Assistant.unpack(archive.inputStream(), target) { done, total -> last = done to total } }
        assertEquals(last.first, last.second)
        TinyBundle.open(target)
        val other = File(temporary.root, "other")
        runBlocking { launch(Dispatchers.Default) { Assistant.unpack(archive.inputStream(), other) { _, _ -> cancel() } }.join() }
        assertFalse(other.exists())
    }

    @Test fun openingRefusesWhatTheBundleIsNot() {
        val folder = TinyBundle.folder(temporary.newFolder())
        File(folder, "model.pte").writeText("another")
        assertRefused("model.pte") { runBlocking { Assistant.open(folder) } }
    }
}
