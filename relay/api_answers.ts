/** What the API's routes answer in common, as the OpenAPI document describes it. */
import type { OpenAPIHono, z } from '@hono/zod-openapi'
import * as shapes from './api_shapes.ts'
import type { AppEnv } from './app.ts'
import { Problem } from './problem.ts'

export type Api = OpenAPIHono<AppEnv>

export const NOTHING = { description: 'Done; there is nothing to say.' }
/** What every route can answer. */
export const PROBLEMS = {
  400: problemAnswer('The request cannot be read.'),
  401: problemAnswer('No credential, or none that holds.'),
  403: problemAnswer('This credential does not allow it.'),
  429: problemAnswer('Too many requests; Retry-After says when to come back.'),
}
export const MISSING = { 404: problemAnswer('There is none, or it is not of your scope.') }
export const CONFLICT = { 409: problemAnswer('As things stand now it cannot be done.') }
export const BODY_PROBLEMS = {
  413: problemAnswer('The body is too large.'),
  415: problemAnswer('The body is not JSON.'),
}

export function missing(what: string): Problem {
  return new Problem(404, { code: 'api/unknown', message: `Cannot find ${what} of that name` })
}

export function jsonAnswer<T extends z.ZodType>(schema: T) {
  return { description: 'Done.', content: { 'application/json': { schema } } }
}

export function jsonBody<T extends z.ZodType>(schema: T) {
  return { required: true as const, content: { 'application/json': { schema } } }
}

function problemAnswer(description: string) {
  return { description, content: { 'application/json': { schema: shapes.problemSchema } } }
}
