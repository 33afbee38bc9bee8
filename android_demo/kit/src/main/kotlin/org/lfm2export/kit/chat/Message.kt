package org.lfm2export.kit.chat

/** One turn. [role] is `system`, `user`, `assistant` or `tool`, the last with a tool's answer as [content]. */
data class Message(val role: String, val content: String)
