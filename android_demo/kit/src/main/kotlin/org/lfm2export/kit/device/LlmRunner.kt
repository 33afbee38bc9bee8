package org.lfm2export.kit.device

import org.lfm2export.kit.bundle.Bundle
import org.lfm2export.kit.bundle.Json
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.chat.TextRunner
import org.pytorch.executorch.extension.llm.LlmCallback
import org.pytorch.executorch.extension.llm.LlmModule
import org.pytorch.executorch.extension.llm.LlmModuleConfig

/** A resident `.pte` through ExecuTorch's `LlmModule`, which samples by temperature alone. */
class LlmRunner(bundle: Bundle, temperature: Float) : TextRunner {
    private val module = LlmModule(
        LlmModuleConfig.create()
            .modulePath(bundle.program.path)
            .tokenizerPath(bundle.tokenizer.path)
            .temperature(temperature)
            .loadMode(LlmModuleConfig.LOAD_MODE_MMAP)
            .build(),
    ).apply { load() }

    override fun generate(prompt: String, sequenceLength: Int, onPiece: (String) -> Unit): TextRunner.Counts {
        val listener = Listener(onPiece)
        module.generate(prompt, sequenceLength, listener, false)
        return listener.counts()
    }

    override fun reset() = module.resetContext()

    override fun stop() = module.stop()

    override fun close() = module.close()

    /** Nothing may be thrown through the native code that calls this: a failure waits until `generate` is back. */
    private class Listener(private val onPiece: (String) -> Unit) : LlmCallback {
        private var stats: String? = null
        private var failure: Exception? = null

        override fun onResult(result: String) {
            try {
                if (failure == null) onPiece(result)
            } catch (error: Exception) {
                failure = error
            }
        }

        override fun onStats(stats: String) {
            this.stats = stats
        }

        override fun onError(errorCode: Int, message: String) {
            if (failure == null) failure = Refusal("ExecuTorch error $errorCode: $message")
        }

        fun counts(): TextRunner.Counts {
            failure?.let { throw it }
            val json = Json.parse(stats ?: throw Refusal("ExecuTorch's runner gave no statistics"), "the runner's statistics")
            return TextRunner.Counts(json.whole("prompt_tokens").toInt(), json.whole("generated_tokens").toInt())
        }
    }
}
