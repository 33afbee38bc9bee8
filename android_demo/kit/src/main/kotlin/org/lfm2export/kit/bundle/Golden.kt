package org.lfm2export.kit.bundle

import org.lfm2export.kit.chat.Message

/** What was known of the logits of one step: the largest, best first, and the largest magnitude of all. */
class GoldenStep(val top: IntArray, val logits: DoubleArray, val scale: Double)

/** A chat, its prompt as tokens, and the greedy reply of the artifact where the bundle was made. */
class GoldenCase(val messages: List<Message>, val prompt: IntArray, val reply: String, val steps: List<GoldenStep>)

/** A chat with tools, JSON objects, and its prompt as tokens, which nobody has answered. */
class ToolPrompt(val messages: List<Message>, val tools: List<Any>, val prompt: IntArray)

/**
 * `golden.json`: cases that the program must answer alike on every machine, up to [maxError], relative to the scale; and how
 * the bundle's template writes tools, if it takes any.
 */
class Golden(val runtime: String, val maxError: Double, val cases: List<GoldenCase>, val toolPrompts: List<ToolPrompt>) {
    companion object {
        const val NAME = "golden.json"

        /** Refusal for anything that could not be replayed, an empty list above all: it would prove nothing. */
        fun parse(text: String, vocabSize: Int): Golden {
            val json = Json.parse(text, NAME)
            val cases = json.children("cases").map { readCase(it, vocabSize) }
            if (cases.isEmpty()) json.refuse("cases", "empty")
            val maxError = json.number("max_error")
            if (!(maxError > 0 && maxError < 1)) json.refuse("max_error", "$maxError, expected between 0 and 1")
            val toolPrompts = if (json.has("tool_prompts")) json.children("tool_prompts") else emptyList()
            return Golden(json.text("runtime"), maxError, cases, toolPrompts.map { ToolPrompt(readMessages(it), it.items("tools"), tokens(it, "prompt", vocabSize)) })
        }

        private fun readMessages(json: Json) = json.children("messages").map { Message(it.text("role"), it.text("content")) }

        private fun readCase(json: Json, vocabSize: Int): GoldenCase {
            val steps = json.children("steps").map { readStep(it, vocabSize) }
            if (steps.isEmpty()) json.refuse("steps", "empty")
            return GoldenCase(readMessages(json), tokens(json, "prompt", vocabSize), json.text("reply"), steps)
        }

        private fun readStep(json: Json, vocabSize: Int): GoldenStep {
            val step = GoldenStep(tokens(json, "top", vocabSize), json.numbers("logits").toDoubleArray(), json.number("scale"))
            if (step.top.size < 2 || step.top.size != step.logits.size) json.refuse("logits", "expected one for each of top, two at least")
            if (!(step.scale > 0)) json.refuse("scale", "${step.scale}, expected more than 0")
            return step
        }

        private fun tokens(json: Json, name: String, vocabSize: Int): IntArray {
            val ids = json.wholes(name)
            val beyond = ids.firstOrNull { it !in 0 until vocabSize }
            if (ids.isEmpty() || beyond != null) json.refuse(name, beyond?.let { "no token $it" } ?: "empty")
            return IntArray(ids.size) { ids[it].toInt() }
        }
    }
}
