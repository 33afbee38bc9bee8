package org.lfm2export.kit.chat

import java.util.Random
import java.util.concurrent.CancellationException
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import org.lfm2export.kit.TinyBundle
import org.lfm2export.kit.assertRefused
import org.lfm2export.kit.bundle.Golden
import org.lfm2export.kit.bundle.ToolPrompt
import org.lfm2export.kit.model.FakeProgram
import org.lfm2export.kit.model.Program
import org.lfm2export.kit.model.Sampler
import org.lfm2export.kit.model.Session
import org.lfm2export.kit.text.Tokenizer

private val tokenizer = Tokenizer.parse(TinyBundle.tokenizer().toString(), "tokenizer.json")
private val template = ChatTemplate("<|startoftext|>")

private fun user(text: String) = Message("user", text)

class ChatTemplateTest {
    private val hello = listOf(Message("system", "Be brief."), user("Hello"))

    @Test fun turnsAreWrapped() = assertEquals(
        "<|startoftext|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
        template.render(hello),
    )

    @Test fun toolsFollowTheSystemPrompt() {
        val tools = listOf("{\"name\": \"a\"}", JSONObject().put("name", "b"))
        val listed = "List of tools: <|tool_list_start|>[{\"name\": \"a\"}, {\"name\": \"b\"}]<|tool_list_end|>"
        assertEquals("Be brief.\n$listed", template.render(hello, tools).substringAfter("system\n").substringBefore("<|im_end|>"))
        assertEquals(listed, template.render(listOf(user("Hello")), tools).substringAfter("system\n").substringBefore("<|im_end|>"))
    }

    @Test fun toolAnswersAreMarked() {
        val text = template.render(listOf(Message("tool", "21")), addGenerationPrompt = false)
        assertEquals("<|startoftext|><|im_start|>tool\n<|tool_response_start|>21<|tool_response_end|><|im_end|>\n", text)
    }

    @Test fun toolCallsAreFound() {
        assertEquals("[f(x=1)]", ChatTemplate.toolCall("Let me see. <|tool_call_start|>[f(x=1)]<|tool_call_end|>"))
        assertNull(ChatTemplate.toolCall("none"))
        assertNull(ChatTemplate.toolCall("<|tool_call_start|>[f("))
    }

    @Test fun otherTemplatesAreNoticed() {
        val golden = Golden.parse(TinyBundle.golden().toString(), TinyBundle.VOCAB)
        TemplateProof.proven(golden, "<|startoftext|>", tokenizer)
        assertRefused("template") { TemplateProof.proven(golden, "", tokenizer) }
    }

    @Test fun otherWaysOfWritingToolsAreNoticed() {
        val tools = listOf(JSONObject().put("name", "f"))
        val messages = listOf(Message("tool", "21"))
        fun proven(prompt: IntArray?): ChatTemplate {
            val prompts = listOfNotNull(prompt?.let { ToolPrompt(messages, tools, it) })
            val golden = Golden.parse(TinyBundle.golden().toString(), TinyBundle.VOCAB)
            return TemplateProof.proven(Golden(golden.runtime, golden.maxError, golden.cases, prompts), "<|startoftext|>", tokenizer)
        }
        val prompt = tokenizer.encode(template.render(messages, tools))
        assertEquals(template.render(messages, tools), proven(prompt).render(messages, tools))
        for (other in listOf(proven(prompt.copyOf(prompt.size - 1)), proven(null))) {
            assertEquals(template.render(hello), other.render(hello))
            assertRefused("tools") { other.render(hello, tools) }
            assertRefused("tools") { other.render(messages) }
        }
    }
}

class PythonJsonTest {
    @Test fun floatsAreWrittenAsPythonDoes() {
        val expected = mapOf(
            2.0 to "2.0", 0.1 to "0.1", 1e-4 to "0.0001", 1e-5 to "1e-05", 1e15 to "1000000000000000.0", 1e16 to "1e+16",
            1.5e300 to "1.5e+300", -2.5 to "-2.5", 0.0 to "0.0", -0.0 to "-0.0", 5e-324 to "5e-324", 123456.789 to "123456.789",
            5.986310706507379e51 to "5.986310706507379e+51", // 2 to the 172nd
        )
        for ((value, text) in expected) assertEquals(text, PythonJson.float(value))
    }

    @Test fun nestingKeepsItsOrderAndSpaces() {
        val json = JSONObject("""{"b": [1, true, null, "ä\n\u0001\""], "a": {}}""")
        assertEquals("""{"b": [1, true, null, "ä\n\u0001\""], "a": {}}""", PythonJson.text(json))
    }
}

class ExplicitChatTest {
    private val heard = StringBuilder()

    /** Says each of [reply] in turn from the prompt's end on, then the end mark. */
    private fun chat(program: FakeProgram): ExplicitChat {
        val session = Session(program, TinyBundle.parsedManifest(), state = null)
        return ExplicitChat(session, program, tokenizer, template, setOf(TinyBundle.END), Sampler.GREEDY)
    }

    private val sayingHi = { FakeProgram { _, tokens -> mapOf(10L to 'H'.code, 'H'.code.toLong() to 'i'.code)[tokens.last()] ?: TinyBundle.END } }

    private fun ExplicitChat.ask(messages: List<Message>, limit: Int = 9) = reply(messages, emptyList(), limit) { heard.append(it) }

    @Test fun endMarkIsNotShown() {
        val reply = chat(sayingHi()).ask(listOf(user("a")))
        assertEquals("Hi", reply.text)
        assertEquals("Hi", heard.toString())
        assertEquals(Ending.COMPLETE, reply.ending)
        assertEquals(2, reply.speed.newTokens)
    }

    @Test fun nextTurnFeedsOnlyWhatIsNew() {
        val program = sayingHi()
        val chat = chat(program)
        chat.ask(listOf(user("a")))
        val calls = program.calls.size
        val second = chat.ask(listOf(user("a"), Message("assistant", "Hi"), user("b")))
        assertEquals(tokenizer.encode("\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n").size, second.speed.promptTokens)
        assertEquals(program.calls[calls - 1].first + 1, program.calls[calls].first)
    }

    @Test fun anotherConversationStartsOver() {
        val program = sayingHi()
        val chat = chat(program)
        chat.ask(listOf(user("a")))
        val calls = program.calls.size
        chat.ask(listOf(user("c")))
        assertEquals(0L, program.calls[calls].first)
    }

    @Test fun resetGivesTheFirstConversationAgain() {
        val program = sayingHi()
        val chat = chat(program)
        chat.ask(listOf(user("a")))
        val first = program.calls.toList()
        chat.reset()
        chat.ask(listOf(user("a")))
        assertEquals(first, program.calls.drop(first.size))
    }

    /** Says `abcabc…` whatever it is asked. */
    private val repeating = { FakeProgram { _, tokens -> (tokens.last().toInt()).let { if (it in 'a'.code..'b'.code) it + 1 else 'a'.code } } }

    @Test fun draftsChangeTheCallsAndNotTheReply() {
        for (limit in listOf(1, 7, 30, 500)) {
            val plain = repeating()
            val drafted = repeating()
            val expected = chat(plain).ask(listOf(user("a")), limit)
            val reply = chat(drafted).reply(listOf(user("a")), emptyList(), limit, drafting = true) {}
            assertEquals(Pair(expected.text, expected.ending), Pair(reply.text, reply.ending))
            assertEquals(expected.speed.newTokens, reply.speed.newTokens)
            if (limit > 20) assertTrue(drafted.calls.size < plain.calls.size / 2)
        }
    }

    @Test fun theFiguresSayWhatBecameOfDrafts() {
        assertEquals("prefill 9 tokens at 18.0 tok/s, decode 12 tokens at 6.0 tok/s", Speed(9, 0.5, 12, 2.0).line())
        val drafted = Speed(9, 0.5, 12, 2.0, drafted = 8, accepted = 5, singleTokens = 3, singleSeconds = 1.0).line()
        assertEquals("12 tokens at 6.0 tok/s, 3.0 without (accepted 5 of 8 drafted)", drafted.substringAfter("decode "))
    }

    @Test fun sampledRepliesAreThoseOfTheSameSeed() {
        fun said(drafting: Boolean): String {
            val program = FakeProgram { _, tokens -> if (tokens.last() % 2 == 0L) 'a'.code else 'b'.code }
            val session = Session(program, TinyBundle.parsedManifest(), state = null)
            val sampler = Sampler(temperature = 0.3, minP = 0.02, repetitionPenalty = 1.0, random = Random(2))
            return ExplicitChat(session, program, tokenizer, template, setOf(0), sampler).reply(listOf(user("a")), emptyList(), 40, drafting) {}.text
        }
        assertEquals(said(drafting = false), said(drafting = true))
    }

    @Test fun nothingIsSaidBehindAnEndMarkInsideADraft() {
        val program = FakeProgram { position, tokens ->
            if (position == 55L) TinyBundle.END else (tokens.last().toInt()).let { if (it in 'a'.code..'b'.code) it + 1 else 'a'.code }
        }
        val reply = chat(program).reply(listOf(user("a")), emptyList(), 500, drafting = true) {}
        assertEquals(Ending.COMPLETE, reply.ending)
        assertEquals(56 - tokenizer.encode(template.render(listOf(user("a")))).size, reply.text.length)
    }

    @Test fun limitAndWindowEndAReply() {
        assertEquals(Ending.LIMIT, chat(FakeProgram { _, _ -> 97 }).ask(listOf(user("a")), limit = 3).ending)
        val long = chat(FakeProgram { _, _ -> 97 }).ask(listOf(user("a")), limit = 500)
        assertEquals(Ending.WINDOW, long.ending)
        assertEquals(64 - tokenizer.encode(template.render(listOf(user("a")))).size, long.text.length)
    }

    @Test fun promptLargerThanTheWindowIsRefused() = assertRefused("full") { chat(sayingHi()).ask(listOf(user("a".repeat(60)))) }

    @Test fun replyCanBeStopped() {
        lateinit var chat: ExplicitChat
        chat = chat(FakeProgram { _, _ -> 97 })
        val reply = chat.reply(listOf(user("a")), emptyList(), 99) { if (heard.append(it).length == 2) chat.stop() }
        assertEquals("aa", reply.text)
        assertEquals(Ending.STOPPED, reply.ending)
    }
}

class FailingProgramTest {
    /** Fails once, in the middle of a reply. */
    private class Failing(private val inner: FakeProgram) : Program by inner {
        var failing = true

        override fun call(tokens: LongArray, position: Long): FloatArray {
            if (failing && inner.calls.size == 4) {
                failing = false
                throw IllegalStateException("native")
            }
            return inner.call(tokens, position)
        }
    }

    @Test fun nextTurnIsFedFromTheStart() {
        val inner = FakeProgram { _, _ -> 97 }
        val program = Failing(inner)
        val session = Session(program, TinyBundle.parsedManifest(), state = null)
        val chat = ExplicitChat(session, program, tokenizer, template, setOf(TinyBundle.END), Sampler.GREEDY)
        assertThrows(IllegalStateException::class.java) { chat.reply(listOf(user("a")), emptyList(), 9) {} }
        chat.reply(listOf(user("a")), emptyList(), 2) {}
        assertEquals(0L, inner.calls[4].first)
    }
}

class ResidentChatTest {
    /** Streams [pieces]; counts as ExecuTorch's does: the last piece was not fed. */
    private class FakeRunner(var pieces: List<String>) : TextRunner {
        val prompts = mutableListOf<Pair<String, Int>>()
        var resets = 0
        var stops = 0
        var failure: Exception? = null

        override fun generate(prompt: String, sequenceLength: Int, onPiece: (String) -> Unit): TextRunner.Counts {
            prompts += prompt to sequenceLength
            failure?.let { throw it }
            pieces.forEach(onPiece)
            return TextRunner.Counts(tokenizer.encode(prompt).size, pieces.size - 1)
        }

        override fun reset() {
            resets++
        }

        override fun stop() {
            stops++
        }

        override fun close() = Unit
    }

    private val runner = FakeRunner(listOf("H", "i", "<|im_end|>"))
    private val heard = StringBuilder()

    private fun chat(maxTokens: Int = 16, window: Int = 200) = ResidentChat(runner, tokenizer, template, setOf("<|im_end|>"), window, maxTokens)

    private fun ResidentChat.ask(messages: List<Message>, limit: Int = 9) = reply(messages, emptyList(), limit) { heard.append(it) }

    private val second = listOf(user("a"), Message("assistant", "Hi"), user("b"))

    @Test fun endMarkIsNotShown() {
        val reply = chat().ask(listOf(user("a")))
        assertEquals("Hi" to Ending.COMPLETE, reply.text to reply.ending)
        assertEquals("Hi", heard.toString())
    }

    @Test fun nextTurnFeedsTheEndMarkAndWhatFollows() {
        val chat = chat()
        chat.ask(listOf(user("a")))
        chat.ask(second)
        assertEquals("<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n", runner.prompts.last().first)
        assertEquals(1, runner.resets) // before the first, to be sure
    }

    @Test fun replyThatDidNotEndIsFedAgain() {
        val chat = chat()
        runner.pieces = listOf("H", "i")
        assertEquals(Ending.LIMIT, chat.ask(listOf(user("a"))).ending)
        chat.ask(second)
        assertEquals(template.render(second), runner.prompts.last().first)
    }

    @Test fun whatFollowsAnEndMarkIsNotShown() {
        runner.pieces = listOf("<|im_end|>", "more", "<|im_end|>")
        val chat = chat()
        assertEquals("", chat.ask(listOf(user("a"))).text)
        assertEquals("", heard.toString())
        assertEquals(2, runner.stops)
        val next = listOf(user("a"), Message("assistant", ""), user("b"))
        chat.ask(next)
        assertEquals(template.render(next), runner.prompts.last().first)
    }

    @Test fun replyCanBeStopped() {
        lateinit var chat: ResidentChat
        chat = chat()
        val reply = chat.reply(listOf(user("a")), emptyList(), 9) { chat.stop() }
        assertEquals("H" to Ending.STOPPED, reply.text to reply.ending)
    }

    @Test fun aCancelledReplyIsFedAgain() {
        val chat = chat()
        assertThrows(CancellationException::class.java) {
            chat.reply(listOf(user("a")), emptyList(), 9, cancelled = { heard.isNotEmpty() }) { heard.append(it) }
        }
        assertEquals("H", heard.toString())
        assertEquals(2, runner.stops) // asked of each piece after it
        chat.ask(second)
        assertEquals(template.render(second), runner.prompts.last().first)
    }

    @Test fun windowIsMindedOverAllTurns() {
        val prompt = tokenizer.encode(template.render(listOf(user("a")))).size
        val chat = chat(window = prompt + 4)
        chat.ask(listOf(user("a")))
        assertEquals(4, runner.prompts.single().second)
        assertRefused("full") { chat.ask(second) }
        assertEquals(1, runner.prompts.size)
    }

    @Test fun sequenceLengthIsOfTheConversationWhereOneCallHoldsTheWindow() {
        chat(maxTokens = 200).ask(listOf(user("a")), limit = 9)
        assertEquals(tokenizer.encode(runner.prompts.last().first).size + 9, runner.prompts.last().second)
        chat(maxTokens = 16).ask(listOf(user("a")), limit = 9)
        assertEquals(9, runner.prompts.last().second)
    }

    @Test fun failureForgetsTheConversation() {
        val chat = chat()
        chat.ask(listOf(user("a")))
        runner.failure = IllegalStateException("native")
        assertThrows(IllegalStateException::class.java) { chat.ask(second) }
        runner.failure = null
        chat.ask(second)
        assertEquals(template.render(second), runner.prompts.last().first)
    }
}
