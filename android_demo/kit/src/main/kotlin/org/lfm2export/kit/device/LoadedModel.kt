package org.lfm2export.kit.device

import java.io.Closeable
import java.io.File
import org.lfm2export.kit.bundle.Bundle
import org.lfm2export.kit.bundle.Golden
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.chat.ChatModel
import org.lfm2export.kit.chat.ChatTemplate
import org.lfm2export.kit.chat.ExplicitChat
import org.lfm2export.kit.chat.ResidentChat
import org.lfm2export.kit.chat.TemplateProof
import org.lfm2export.kit.model.ParityCheck
import org.lfm2export.kit.model.ParityReport
import org.lfm2export.kit.model.Sampler
import org.lfm2export.kit.model.Session
import org.lfm2export.kit.model.StateTensors
import org.lfm2export.kit.text.Tokenizer

/** A verified bundle with its model in memory, ready to chat and to prove itself. One thread at a time. */
class LoadedModel internal constructor(val bundle: Bundle, val chat: ChatModel, private val golden: Golden, private val session: Session?) :
    Closeable by chat {

    /**
     * Replay the golden cases; the conversation starts over. The logits of a resident program are out of `LlmModule`'s
     * reach, so its file is loaded once more, for as long as this takes.
     */
    fun checkParity(cancelled: () -> Boolean): ParityReport {
        chat.reset()
        if (session != null) return ParityCheck(session, golden).run(cancelled)
        ModuleProgram(bundle, state = null).use { program ->
            return ParityCheck(Session(program, bundle.manifest, state = null), golden).run(cancelled)
        }
    }

    companion object {
        /**
         * Verify every byte of the bundle in [folder], then load it. The resident form heeds of [sampler] the temperature
         * alone. Refusal, or ExecuTorch's own exception.
         */
        fun open(folder: File, sampler: Sampler, cancelled: () -> Boolean): LoadedModel {
            val bundle = Bundle.open(folder, EXECUTORCH_VERSION, cancelled)
            val tokenizer = Tokenizer.parse(bundle.tokenizer.readText(), Bundle.TOKENIZER)
            val golden = bundle.golden()
            val template = TemplateProof.proven(golden, bundle.manifest.bosId?.let(tokenizer::textOf).orEmpty(), tokenizer)
            if (bundle.manifest.form == "resident") return resident(bundle, tokenizer, template, golden, sampler.temperature)
            return explicit(bundle, tokenizer, template, golden, sampler)
        }

        private fun explicit(bundle: Bundle, tokenizer: Tokenizer, template: ChatTemplate, golden: Golden, sampler: Sampler): LoadedModel {
            val state = StateTensors(bundle.manifest.state)
            val program = ModuleProgram(bundle, state)
            val session = Session(program, bundle.manifest, state)
            val chat = ExplicitChat(session, program, tokenizer, template, bundle.index.eosIds.toSet(), sampler)
            return LoadedModel(bundle, chat, golden, session)
        }

        private fun resident(bundle: Bundle, tokenizer: Tokenizer, template: ChatTemplate, golden: Golden, temperature: Double): LoadedModel {
            val ends = bundle.index.eosIds.map { tokenizer.textOf(it) ?: throw Refusal("eos_ids: $it is not in ${Bundle.TOKENIZER}") }
            val runner = LlmRunner(bundle, temperature.toFloat())
            val manifest = bundle.manifest
            val chat = ResidentChat(runner, tokenizer, template, ends.toSet(), manifest.window, manifest.maxTokens)
            return LoadedModel(bundle, chat, golden, session = null)
        }
    }
}
