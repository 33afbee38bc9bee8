package org.lfm2export.kit.chat

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.lfm2export.kit.TinyBundle
import org.lfm2export.kit.assertRefused
import org.lfm2export.kit.model.FakeProgram
import org.lfm2export.kit.model.Sampler
import org.lfm2export.kit.model.Session
import org.lfm2export.kit.text.Tokenizer

class ConversationTest {
    private val tokenizer = Tokenizer.parse(TinyBundle.tokenizer().toString(), "tokenizer.json")
    private val program = FakeProgram { _, tokens -> mapOf(10L to 'H', 'H'.code.toLong() to 'i')[tokens.last()]?.code ?: TinyBundle.END }
    private val manifest = TinyBundle.parsedManifest().copy(window = 160)
    private val chat = ExplicitChat(
        Session(program, manifest, state = null), program, tokenizer, ChatTemplate("<|startoftext|>"), setOf(TinyBundle.END), Sampler.GREEDY,
    )

    private fun Conversation.ask(text: String) = reply(Message("user", text), 9) {}

    @Test fun systemPromptAndToolsBeginIt() {
        val conversation = Conversation(chat, "Be brief.", listOf("{}"))
        val reply = conversation.ask("a")
        assertEquals(listOf("system", "user", "assistant"), conversation.messages.map { it.role })
        assertEquals(chat.count(conversation.messages.dropLast(1), listOf("{}")), reply.speed.promptTokens)
    }

    @Test fun aFullWindowRefusesTheTurn() {
        val conversation = Conversation(chat)
        assertRefused("full") { repeat(20) { conversation.ask("a") } }
        assertEquals(0, conversation.messages.size % 2) // the refused turn has not taken place
        assertTrue(conversation.messages.size >= 8)
    }

    @Test fun orCostsTheOldestTurns() {
        val conversation = Conversation(chat, "Be brief.", onFull = OnFull.FORGET)
        var forgotten = 0
        var fed = 0
        for (turn in 0 until 40) {
            val reply = conversation.ask("$turn")
            assertEquals("Hi", reply.text)
            assertEquals(Message("system", "Be brief."), conversation.messages.first())
            assertEquals(Message("user", "$turn"), conversation.messages[conversation.messages.size - 2])
            if (reply.forgottenTurns > 0) assertTrue(reply.speed.promptTokens <= 80) // half of the window
            forgotten += reply.forgottenTurns
            fed += reply.speed.promptTokens
            assertEquals(1 + 2 * (turn + 1 - forgotten), conversation.messages.size)
        }
        assertTrue(fed > 3 * 160)
        assertTrue(forgotten >= 4)
    }

    @Test fun aTurnThatCanNeverFitIsRefusedAndNothingIsForgottenForIt() {
        val conversation = Conversation(chat, onFull = OnFull.FORGET)
        repeat(3) { conversation.ask("a") }
        val before = conversation.messages
        assertRefused("full") { conversation.ask("a".repeat(160)) }
        assertEquals(before, conversation.messages)
    }

    @Test fun theResidentFormSavesNothing() {
        val runner = object : TextRunner {
            override fun generate(prompt: String, sequenceLength: Int, onPiece: (String) -> Unit) = TextRunner.Counts(1, 1)

            override fun reset() = Unit

            override fun stop() = Unit

            override fun close() = Unit
        }
        val resident = ResidentChat(runner, tokenizer, ChatTemplate(""), setOf("<|im_end|>"), 64, 16)
        assertRefused("resident form") { Conversation(resident).save(java.io.File("never")) }
        assertRefused("resident form") { Conversation(resident).load(java.io.File("never")) }
    }
}
