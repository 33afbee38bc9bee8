package org.lfm2export.kit

import java.io.File
import java.io.InputStream
import java.util.concurrent.Executors
import java.util.concurrent.atomic.AtomicBoolean
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.ExecutorCoroutineDispatcher
import kotlinx.coroutines.Job
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.channelFlow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.flow.onStart
import kotlinx.coroutines.isActive
import kotlinx.coroutines.withContext
import org.lfm2export.kit.bundle.Bundle
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.bundle.Unpacker
import org.lfm2export.kit.chat.Conversation
import org.lfm2export.kit.chat.Message
import org.lfm2export.kit.chat.OnFull
import org.lfm2export.kit.chat.Reply
import org.lfm2export.kit.device.LoadedModel
import org.lfm2export.kit.model.ParityReport
import org.lfm2export.kit.model.Sampler

/**
 * A bundle's model and one conversation with it, for coroutines. The model has a thread of its own, on which everything
 * happens in the order it was asked for; every function here may be called from any thread, and none blocks it.
 */
class Assistant internal constructor(private val model: LoadedModel, private val thread: ExecutorCoroutineDispatcher) {
    @Volatile private var conversation = Conversation(model.chat)
    private val closing = AtomicBoolean()
    private val closed = Job()

    /** What was verified and loaded. */
    val bundle: Bundle get() = model.bundle

    /** Whether replies can be drafted. */
    val verifiesDrafts: Boolean get() = model.chat.verifiesDrafts

    /** Whether the conversation can be saved: in the explicit form. */
    val savesState: Boolean get() = model.chat.savesState

    /** All that the conversation remembers, oldest first. */
    val messages: List<Message> get() = conversation.messages

    /** The latest reply that was not cancelled: why it ended, and its speed. */
    @Volatile var lastReply: Reply? = null
        private set

    /** Begin a new conversation. [tools] are JSON objects, as text or as `org.json` values. */
    suspend fun begin(system: String = "", tools: List<Any> = emptyList(), onFull: OnFull = OnFull.STOP) = onThread {
        model.chat.reset()
        conversation = Conversation(model.chat, system, tools, onFull)
        lastReply = null
    }

    /** Say [text] as the user and answer it; see [say]. */
    fun ask(text: String, limit: Int = 512, drafting: Boolean = false): Flow<String> = say(Message("user", text), limit, drafting)

    /**
     * Say [message], the user's or a tool's, each time that the flow is collected, and emit the answer in pieces, at most
     * [limit] tokens; [lastReply] tells how it ended. With [drafting], where [verifiesDrafts], the same text comes sooner
     * where it repeats what was said. Refusal when the window is full.
     *
     * Who stops collecting ends the reply, after the token or the part of the prompt that is being computed. A turn that
     * is cancelled, refused or fails has not taken place; the next one feeds the conversation anew.
     */
    fun say(message: Message, limit: Int = 512, drafting: Boolean = false): Flow<String> =
        channelFlow {
            lastReply = conversation.reply(message, limit, drafting, cancelled = { !isActive || closing.get() }) { trySend(it) }
        }.buffer(Channel.UNLIMITED).flowOn(thread).onStart { checkOpen() }

    /** End the reply that is being made, soon; what was said of it is part of the conversation. */
    fun stop() = model.chat.stop()

    /**
     * Write the conversation and the model's state to [file], for [load], or `lfm2-export chat --load-state`, to go on from.
     * It holds the conversation in clear text. Refusal where not [savesState].
     */
    suspend fun save(file: File) = onThread { conversation.save(file) }

    /**
     * Go on where [save], or `lfm2-export chat --save-state`, left off with the same bundle: nothing is computed anew.
     * Refusal for a file that is damaged or another model's; the conversation goes on as if it had not been read.
     */
    suspend fun load(file: File) = onThread { conversation.load(file) }

    /** Replay the bundle's golden cases on this device. What was said is remembered, and fed again for the next turn. */
    suspend fun checkParity(): ParityReport = onThread { model.checkParity(it) }

    /** Cancel the reply that is being made, free the model and end its thread. `join()` the result to wait for it. */
    fun close(): Job {
        if (closing.compareAndSet(false, true)) {
            thread.executor.execute {
                try {
                    model.close()
                } finally {
                    closed.complete()
                }
            }
            thread.close() // once that is done
        }
        return closed
    }

    private fun checkOpen() {
        if (closing.get()) throw Refusal("this model is closed; open the bundle again")
    }

    private suspend fun <T> onThread(action: (cancelled: () -> Boolean) -> T): T {
        checkOpen()
        return withContext(thread) { action { !isActive } }
    }

    companion object {
        /**
         * Write the bundle of [archive] to [folder], which appears whole or not at all; see [Unpacker]. [progress], in bytes, is
         * called on another thread. Refusal for what is not a sound bundle.
         */
        suspend fun unpack(archive: InputStream, folder: File, progress: (done: Long, total: Long) -> Unit = { _, _ -> }) =
            withContext(Dispatchers.IO) { Unpacker(cancelled = { !isActive }, progress = progress).unpack(archive, folder) }

        /**
         * Verify every byte of the bundle in [folder], then load its model. [sampler] chooses the tokens; the resident form
         * heeds its temperature alone. Refusal, or ExecuTorch's own exception.
         */
        suspend fun open(folder: File, sampler: Sampler = Sampler()): Assistant {
            val thread = Executors.newSingleThreadExecutor { Thread(it, "lfm2-model") }.asCoroutineDispatcher()
            var opened: Assistant? = null
            try {
                return withContext(thread) { Assistant(LoadedModel.open(folder, sampler) { !isActive }, thread).also { opened = it } }
            } catch (error: Throwable) { // cancelled, perhaps, when it was open already
                opened?.close() ?: thread.close()
                throw error
            }
        }
    }
}
