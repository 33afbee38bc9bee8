package org.lfm2export.kit.chat

import java.io.File

/** What becomes of a turn that the window has no room for: it is refused, or the oldest turns are forgotten. */
enum class OnFull { STOP, FORGET }

/**
 * The turns of one conversation with [chat], which begins with [system], if that is not empty, and [tools], JSON objects as
 * text or as `org.json` values. One thread at a time; only [messages] may be read from another.
 */
class Conversation(
    private val chat: ChatModel,
    system: String = "",
    tools: List<Any> = emptyList(),
    private val onFull: OnFull = OnFull.STOP,
) {
    /** All that is remembered, oldest first. A list that was read does not change. */
    @Volatile var messages: List<Message> = if (system.isEmpty()) emptyList() else listOf(Message("system", system))
        private set

    private var tools = tools

    /**
     * Say [message], the user's or a tool's, and answer it, as [ChatModel.reply] does. A turn that is refused, fails or is
     * cancelled has not taken place.
     */
    fun reply(message: Message, limit: Int, drafting: Boolean = false, cancelled: () -> Boolean = { false }, onText: (String) -> Unit): Reply {
        val before = messages
        messages = before + message
        var whole = false
        try {
            val forgotten = if (onFull == OnFull.FORGET) makeRoom(limit) else 0
            val reply = chat.reply(messages, tools, limit, drafting, cancelled, onText)
            messages = messages + Message("assistant", reply.text)
            whole = true
            return reply.copy(forgottenTurns = forgotten)
        } finally {
            if (!whole) messages = before
        }
    }

    /** Write the conversation and the model's state to [file]; see [ChatModel.save]. */
    fun save(file: File) = chat.save(file, messages, tools)

    /** Go on where [save] left off, in this process or another; see [ChatModel.load]. A file that is refused changes nothing. */
    fun load(file: File) {
        val saved = chat.load(file)
        messages = saved.messages
        tools = saved.tools
    }

    /**
     * Forget the oldest turns, once a reply of [limit] tokens may not fit (a quarter of the window will do for the longest),
     * until half of the window is free, so that most turns after this one feed only what is new. How many were forgotten.
     */
    private fun makeRoom(limit: Int): Int {
        val window = chat.window
        if (chat.count(messages, tools) + minOf(limit, window / 4) <= window) return 0
        var forgotten = 0
        while (chat.count(messages, tools) > window / 2) {
            messages = withoutOldestTurn(messages) ?: break
            forgotten++
        }
        return forgotten
    }

    private companion object {
        /** Without the first user's message and what answered it; null where only the latest turn is left. */
        fun withoutOldestTurn(messages: List<Message>): List<Message>? {
            val begins = messages.indices.filter { messages[it].role == "user" }
            if (begins.size < 2) return null
            return messages.take(begins[0]).filter { it.role == "system" } + messages.drop(begins[1])
        }
    }
}
