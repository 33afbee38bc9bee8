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
import org.lfm2export.kit.model.Session
import org.lfm2export.kit.model.StateTensors
import org.lfm2export.kit.text.Tokenizer

/** A verified bundle with its model in memory, ready to chat and to prove itself. */
class LoadedModel private constructor(val bundle: Bundle, val chat: ChatModel, private val golden: Golden, private val session: Session?) :
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
        private const val TEMPERATURE = 0.3f

        /** Verify every byte of the bundle in [folder], then load it. Refusal, or ExecuTorch's own exception. */
        fun open(folder: File, cancelled: () -> Boolean): LoadedModel {
            val bundle = Bundle.open(folder, EXECUTORCH_VERSION, cancelled)
            val tokenizer = Tokenizer.parse(bundle.tokenizer.readText(), Bundle.TOKENIZER)
            val golden = bundle.golden()
            val template = ChatTemplate(bundle.manifest.bosId?.let(tokenizer::textOf).orEmpty())
            TemplateProof.check(golden, template, tokenizer)
            return if (bundle.manifest.form == "explicit") explicit(bundle, tokenizer, template, golden) else resident(bundle, tokenizer, template, golden)
        }

        private fun explicit(bundle: Bundle, tokenizer: Tokenizer, template: ChatTemplate, golden: Golden): LoadedModel {
            val state = StateTensors(bundle.manifest.state)
            val program = ModuleProgram(bundle, state)
            val session = Session(program, bundle.manifest, state)
            val chat = ExplicitChat(session, program, tokenizer, template, bundle.index.eosIds.toSet())
            return LoadedModel(bundle, chat, golden, session)
        }

        private fun resident(bundle: Bundle, tokenizer: Tokenizer, template: ChatTemplate, golden: Golden): LoadedModel {
            val ends = bundle.index.eosIds.map { tokenizer.textOf(it) ?: throw Refusal("eos_ids: $it is not in ${Bundle.TOKENIZER}") }
            val runner = LlmRunner(bundle, TEMPERATURE)
            val manifest = bundle.manifest
            val chat = ResidentChat(runner, tokenizer, template, ends.toSet(), manifest.window, manifest.maxTokens)
            return LoadedModel(bundle, chat, golden, session = null)
        }
    }
}
