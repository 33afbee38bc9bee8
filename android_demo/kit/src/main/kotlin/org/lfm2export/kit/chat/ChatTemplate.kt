package org.lfm2export.kit.chat

import org.lfm2export.kit.bundle.Refusal

/**
 * LFM2's chat template, which ExecuTorch does not have: ChatML, with tools listed at the end of the system turn.
 *
 * It is written for LFM2 and does not read `chat_template.jinja`. Whether a bundle's own template says the same is seen
 * from its golden cases, whose prompts this class must reproduce (`TemplateProof`). [bos] is the text of the token that
 * every conversation begins with. Special tokens in a message's text are not escaped, as they are not in the Jinja
 * template: who types `<|im_end|>` ends the turn.
 */
class ChatTemplate(private val bos: String, private val takesTools: Boolean = true) {
    /**
     * The text of a conversation; [tools] are JSON objects, as text or as `org.json` values. Refusal for tools and their
     * answers where the bundle's own template is not known to write them as LFM2's does.
     */
    fun render(messages: List<Message>, tools: List<Any> = emptyList(), addGenerationPrompt: Boolean = true): String {
        if (!takesTools && (tools.isNotEmpty() || messages.any { it.role == "tool" })) {
            throw Refusal("tools: the bundle's chat template does not write them as LFM2's does, or the bundle does not say; this app knows LFM2's alone")
        }
        val ownSystem = messages.firstOrNull()?.takeIf { it.role == "system" }
        val turns = if (ownSystem == null) messages else messages.drop(1)
        val system = listOf(ownSystem?.content.orEmpty(), listed(tools)).filter { it.isNotEmpty() }.joinToString("\n")
        return buildString {
            append(bos)
            if (system.isNotEmpty()) appendTurn("system", system)
            for (turn in turns) appendTurn(turn.role, if (turn.role == "tool") RESPONSE_START + turn.content + RESPONSE_END else turn.content)
            if (addGenerationPrompt) append(TURN_START).append("assistant\n")
        }
    }

    private fun StringBuilder.appendTurn(role: String, content: String) {
        append(TURN_START).append(role).append('\n').append(content).append(TURN_END).append('\n')
    }

    private fun listed(tools: List<Any>): String {
        if (tools.isEmpty()) return ""
        val texts = tools.map { if (it is String) it else PythonJson.text(it) }
        return texts.joinToString(", ", prefix = "List of tools: $TOOLS_START[", postfix = "]$TOOLS_END")
    }

    companion object {
        private const val TURN_START = "<|im_start|>"
        private const val TURN_END = "<|im_end|>"
        private const val TOOLS_START = "<|tool_list_start|>"
        private const val TOOLS_END = "<|tool_list_end|>"
        private const val CALL_START = "<|tool_call_start|>"
        private const val CALL_END = "<|tool_call_end|>"
        private const val RESPONSE_START = "<|tool_response_start|>"
        private const val RESPONSE_END = "<|tool_response_end|>"

        /** The first tool call in a reply, without its marks: the next message is the tool's answer. Null without one. */
        fun toolCall(reply: String): String? {
            val start = reply.indexOf(CALL_START)
            if (start < 0) return null
            val end = reply.indexOf(CALL_END, start)
            return if (end < 0) null else reply.substring(start + CALL_START.length, end)
        }
    }
}
