/**
 * The entry of the built program. A bundler that splits code keeps the order of imports within a chunk
 * and not between chunks, and one package asks for this one to be loaded before it.
 */
import 'reflect-metadata'
import '../agent/main.ts'
