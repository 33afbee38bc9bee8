package org.lfm2export.kit.bundle

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.security.MessageDigest
import java.util.concurrent.CancellationException
import java.util.zip.ZipEntry
import java.util.zip.ZipException
import java.util.zip.ZipInputStream

/**
 * A bundle archive as a folder. The archive is read once, front to back, and distrusted throughout: only entries that
 * `bundle.json`, the first one, vouches for are written, each stored, once, of the size and SHA-256 it says.
 */
class Unpacker(
    private val room: (File) -> Long = { it.usableSpace },
    private val cancelled: () -> Boolean = { false },
    private val progress: (done: Long, total: Long) -> Unit = { _, _ -> },
) {
    private var done = 0L

    /** Write the bundle to [target], which appears whole or not at all. Refusal for what is not a sound bundle. */
    fun unpack(archive: InputStream, target: File) {
        val partial = File(target.parentFile, target.name + ".part")
        clear(partial)
        if (!partial.mkdirs()) throw Refusal("$partial: cannot be created")
        try {
            ZipInputStream(archive).use { write(it, partial) }
            clear(target)
            if (!partial.renameTo(target)) throw Refusal("$target: cannot be written")
        } catch (error: ZipException) {
            throw Refusal("not a sound archive: ${error.message}", error)
        } catch (error: IllegalArgumentException) { // an entry's name that is not UTF-8
            throw Refusal("not a sound archive: ${error.message}", error)
        } catch (error: IOException) {
            throw Refusal("the archive could not be read or written: ${error.message}", error)
        } finally {
            clear(partial)
        }
    }

    private fun write(zip: ZipInputStream, folder: File) {
        val index = readIndex(zip, folder)
        var entry = zip.nextEntry
        val seen = mutableSetOf<String>()
        while (entry != null) {
            val vouched = index.files[entry.name] ?: throw Refusal("${shown(entry)}: not listed in ${BundleIndex.NAME}")
            if (!seen.add(entry.name)) throw Refusal("${shown(entry)}: twice in the archive")
            checkStored(entry, vouched.size)
            val target = File(folder, entry.name)
            target.parentFile?.mkdirs()
            val digest = copy(zip, target, vouched.size, index.totalSize)
            if (digest != vouched.sha256) throw Refusal("${entry.name}: SHA-256 differs from ${BundleIndex.NAME}; get the bundle again")
            entry = zip.nextEntry
        }
        val missing = index.files.keys - seen
        if (missing.isNotEmpty()) throw Refusal("${missing.first()}: missing from the archive; get the bundle again")
    }

    private fun readIndex(zip: ZipInputStream, folder: File): BundleIndex {
        val entry = zip.nextEntry ?: throw Refusal("not a bundle: no ZIP archive, or an empty one")
        if (entry.name != BundleIndex.NAME) throw Refusal("not a bundle: it begins with ${shown(entry)}, not ${BundleIndex.NAME}")
        if (entry.size !in 1..BundleIndex.LARGEST) throw Refusal("${BundleIndex.NAME}: ${entry.size} bytes")
        checkStored(entry, entry.size)
        val file = File(folder, BundleIndex.NAME)
        copy(zip, file, entry.size, entry.size)
        val index = BundleIndex.parse(file.readText())
        if (room(folder) < index.totalSize) {
            throw Refusal("the bundle needs ${index.totalSize shr 20} MiB, ${room(folder) shr 20} MiB are free")
        }
        done = 0
        return index
    }

    private fun checkStored(entry: ZipEntry, size: Long) {
        if (entry.method != ZipEntry.STORED) throw Refusal("${shown(entry)}: compressed; entries of a bundle are stored")
        if (entry.size != size) throw Refusal("${shown(entry)}: ${entry.size} bytes, ${BundleIndex.NAME} says $size")
    }

    /** SHA-256 of what was written, which is exactly [size] bytes. */
    private fun copy(zip: ZipInputStream, target: File, size: Long, total: Long): String {
        val digest = MessageDigest.getInstance("SHA-256")
        val buffer = ByteArray(1 shl 16)
        var written = 0L
        target.outputStream().use { out ->
            while (true) {
                if (cancelled()) throw CancellationException()
                val count = zip.read(buffer)
                if (count < 0) break
                written += count
                if (written > size) throw Refusal("${target.name}: more than $size bytes")
                out.write(buffer, 0, count)
                digest.update(buffer, 0, count)
                done += count
                progress(done, total)
            }
        }
        if (written != size) throw Refusal("${target.name}: $written bytes, ${BundleIndex.NAME} says $size")
        return digest.digest().hex()
    }

    private fun clear(folder: File) {
        if (folder.exists() && !folder.deleteRecursively()) throw Refusal("$folder: cannot be removed")
    }

    private fun shown(entry: ZipEntry) = "'" + entry.name.filter { it >= ' ' }.take(80) + "'"
}

internal fun ByteArray.hex(): String = joinToString("") { "%02x".format(it) }
